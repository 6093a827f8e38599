//! Name look-up that never lets a private address through.
//!
//! The client connects only to the addresses returned here, so an answer that changes between a check and the connection
//! (DNS rebinding) has nothing to gain. One refused address refuses the name: an answer that mixes public and private
//! addresses is an attack or a mistake, and which one the connection would take is left to chance.

use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::Policy;
use super::address::{Class, classify};
use crate::limits;

/// Asks the system (`getaddrinfo`, on a blocking thread) and filters what it says.
#[derive(Debug, Clone, Copy)]
pub struct FilteredResolver {
    pub policy: Policy,
}

/// A name that is not to be connected to, or that is not known. Travels inside the HTTP client's error.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("{host} resolves to {address}, {}", describe(*.class))]
    Refused { host: String, address: IpAddr, class: Class },
    #[error("{host} has no address: {source}")]
    Unknown { host: String, source: std::io::Error },
    #[error("{host} cannot be looked up at the moment: {source}")]
    Busy { host: String, source: std::io::Error },
    #[error("looking up {host} took longer than {} s", limits::FETCH_CONNECT.as_secs())]
    Slow { host: String },
}

/// The end of a refusal: what the address is and what can be done about it.
pub fn describe(class: Class) -> String {
    match class {
        Class::Public => "a public address".into(),
        Class::Private(kind) => format!("{kind}; start the node with --allow-private-origins to fetch from it"),
        Class::Never(kind) => format!("{kind}; it is never fetched from"),
    }
}

impl Resolve for FilteredResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.policy;
        let host = name.as_str().to_owned();
        Box::pin(async move {
            let answer = look_up(&host).await?;
            let addresses: Addrs = Box::new(filter(&host, answer, policy)?.into_iter());
            Ok(addresses)
        })
    }
}

async fn look_up(host: &str) -> Result<Vec<SocketAddr>, LookupError> {
    match tokio::time::timeout(limits::FETCH_CONNECT, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(answer)) => Ok(answer.collect()),
        Ok(Err(source)) if is_passing(&source) => Err(LookupError::Busy { host: host.into(), source }),
        Ok(Err(source)) => Err(LookupError::Unknown { host: host.into(), source }),
        Err(_) => Err(LookupError::Slow { host: host.into() }),
    }
}

/// `EAI_AGAIN` and a look-up that failed in the system say nothing about the name. The standard library keeps the code to
/// itself and gives the C library's words, which are English in a process that never calls `setlocale`.
fn is_passing(error: &std::io::Error) -> bool {
    error.raw_os_error().is_some() || error.to_string().contains("Temporary failure")
}

/// All of the answer or nothing.
pub(super) fn filter(host: &str, mut answer: Vec<SocketAddr>, policy: Policy) -> Result<Vec<SocketAddr>, LookupError> {
    for address in &answer {
        let class = classify(address.ip());
        if !class.allowed(policy.allow_private) {
            return Err(LookupError::Refused { host: host.into(), address: address.ip(), class });
        }
    }
    answer.truncate(limits::FETCH_ADDRESSES);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect()
    }

    #[test]
    fn one_private_address_refuses_the_name() {
        let policy = Policy { allow_private: false };
        let error = filter("mixed.example", answer(&["1.1.1.1", "10.0.0.7"]), policy).unwrap_err();
        assert_eq!(
            error.to_string(),
            "mixed.example resolves to 10.0.0.7, a private address; start the node with --allow-private-origins to fetch \
             from it"
        );
        assert_eq!(filter("x", answer(&["1.1.1.1", "2606:4700::1"]), policy).unwrap().len(), 2);
    }

    #[test]
    fn the_flag_opens_private_but_not_metadata() {
        let policy = Policy { allow_private: true };
        assert!(filter("x", answer(&["10.0.0.7", "127.0.0.1"]), policy).is_ok());
        assert!(filter("x", answer(&["169.254.169.254"]), policy).is_err());
    }

    #[test]
    fn a_long_answer_is_judged_whole_then_cut() {
        let policy = Policy { allow_private: false };
        let mut long = answer(&["1.1.1.1"; 40]);
        assert_eq!(filter("x", long.clone(), policy).unwrap().len(), limits::FETCH_ADDRESSES);
        long.extend(answer(&["127.0.0.1"]));
        assert!(filter("x", long, policy).is_err());
    }
}
