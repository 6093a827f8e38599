//! What a token is good for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// See objects and assets, lists of them, and the metrics.
    Read,
    /// Store and delete, and everything about jobs.
    Write,
    /// Tokens, scrubs, the state of disks and plugins; and all the rest.
    Admin,
}

const ALL: [Scope; 3] = [Scope::Read, Scope::Write, Scope::Admin];

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Write => "write",
            Scope::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One scope or more. Writing does not include reading, so that a sender can be trusted with less than the whole store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Scope>", into = "Vec<Scope>")]
pub struct Scopes(u8);

impl Scopes {
    pub const ALL: Scopes = Scopes(0b111);

    pub fn of(scopes: &[Scope]) -> Scopes {
        Scopes(scopes.iter().fold(0, |set, scope| set | 1 << *scope as u8))
    }

    /// Whether they suffice for what needs `scope`.
    pub fn allow(self, scope: Scope) -> bool {
        self.has(scope) || self.has(Scope::Admin)
    }

    fn has(self, scope: Scope) -> bool {
        self.0 & 1 << scope as u8 != 0
    }

    fn iter(self) -> impl Iterator<Item = Scope> {
        ALL.into_iter().filter(move |scope| self.has(*scope))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Scope::as_str).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Scopes {
    type Err = String;

    /// `read,write`
    fn from_str(text: &str) -> Result<Self, String> {
        let scope = |name: &str| {
            let known = ALL.into_iter().find(|scope| scope.as_str() == name);
            known.ok_or_else(|| format!("{name:?} is no scope; there are read, write and admin"))
        };
        let scopes: Vec<Scope> = text.split(',').map(|name| scope(name.trim())).collect::<Result<_, _>>()?;
        Scopes::try_from(scopes)
    }
}

impl TryFrom<Vec<Scope>> for Scopes {
    type Error = String;

    fn try_from(scopes: Vec<Scope>) -> Result<Self, String> {
        if scopes.is_empty() {
            return Err("a token needs a scope: read, write or admin".into());
        }
        Ok(Scopes::of(&scopes))
    }
}

impl From<Scopes> for Vec<Scope> {
    fn from(scopes: Scopes) -> Self {
        scopes.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_does_not_include_reading_and_admin_includes_both() {
        let of = |text: &str| text.parse::<Scopes>().unwrap();
        assert!(of("read").allow(Scope::Read) && !of("read").allow(Scope::Write));
        assert!(of("write").allow(Scope::Write) && !of("write").allow(Scope::Read));
        assert!(ALL.into_iter().all(|scope| of("admin").allow(scope)));
        assert_eq!(of("write, read").to_string(), "read,write");
        assert_eq!(serde_json::to_string(&of("write,read")).unwrap(), r#"["read","write"]"#);
        for bad in ["", "read,", "all", "READ"] {
            assert!(bad.parse::<Scopes>().unwrap_err().contains("admin"), "{bad}");
        }
        assert!(serde_json::from_str::<Scopes>("[]").is_err());
    }
}
