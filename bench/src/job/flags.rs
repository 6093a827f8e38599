//! The same options as flags: `--rw=randread` or `--rw randread`. Each `--name` begins a job; what stands before the
//! first is global.

use clap::{Arg, ArgAction, ArgMatches, Command, error::Error};

use super::error::At;
use super::file::Section;
use super::options::{self, Entry, OPTIONS};

/// fio's options as they stood on the command line, in their order. Flatten it into a command.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    entries: Vec<Entry>,
}

impl Flags {
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn sections(&self) -> Vec<Section> {
        let section = |name: &str| Section { name: name.to_owned(), at: At::Flags, entries: Vec::new() };
        let mut sections = vec![section("global")];
        for entry in &self.entries {
            if entry.option == "name" {
                sections.push(section(&entry.value));
            }
            sections.last_mut().expect("begins with one").entries.push(entry.clone());
        }
        sections
    }
}

fn taken(command: &Command, name: &clap::Id) -> bool {
    command.get_arguments().any(|arg| arg.get_id() == name)
}

const HEADING: &str = "fio's options, for --name or all jobs";

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let known = OPTIONS.iter().map(|spec| {
            let arg = Arg::new(spec.name).long(spec.name).help(spec.meaning).help_heading(HEADING);
            let arg = if spec.alias.is_empty() { arg } else { arg.alias(spec.alias) };
            if spec.value.is_empty() {
                arg.num_args(0..=1).require_equals(true).default_missing_value("").value_name("0|1")
            } else {
                arg.num_args(1).allow_hyphen_values(true).value_name(spec.value)
            }
        });
        // They are named here so that they get their own answer instead of clap's, unless the command has such a flag.
        let unsupported = options::unsupported()
            .map(|name| Arg::new(name).long(name).num_args(0..=1).default_missing_value("").hide(true));
        let unsupported: Vec<Arg> = unsupported.filter(|arg| !taken(&command, arg.get_id())).collect();
        let args =
            known.chain(unsupported).map(|arg| arg.action(ArgAction::Append).value_parser(clap::value_parser!(String)));
        command.args(args.collect::<Vec<_>>())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let names = OPTIONS.iter().map(|spec| spec.name).chain(options::unsupported());
        let mut entries: Vec<(usize, Entry)> = Vec::new();
        for name in names {
            // A name that the command uses for itself is none of ours.
            let Ok(values) = matches.try_get_many::<String>(name) else { continue };
            let values = values.into_iter().flatten();
            let indices = matches.indices_of(name).into_iter().flatten();
            let entry = |value: &String| Entry { at: At::Flags, option: name.to_owned(), value: value.clone() };
            entries.extend(indices.zip(values.map(entry)));
        }
        entries.sort_by_key(|(index, _)| *index);
        Ok(Flags { entries: entries.into_iter().map(|(_, entry)| entry).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Flags without a command around them.
#[cfg(test)]
pub fn parse<T: Into<std::ffi::OsString> + Clone>(line: impl IntoIterator<Item = T>) -> Result<Flags, Error> {
    use clap::{Args, FromArgMatches};
    let command = Flags::augment_args(Command::new("run").no_binary_name(true));
    Flags::from_arg_matches(&command.try_get_matches_from(line)?)
}
