//! The command line in clap's terms: the definitions, and the options of all commands that connect.

use std::collections::BTreeMap;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Args, Command, CommandFactory, FromArgMatches};

use super::{Cli, ContextOption, PAGES, SecurityOptions, help, page_as_command};
use crate::settings;

/// The IDs of arguments that only commands have that connect to a proxy, a registrar or a socket. These
/// commands get the options for security.
const CONNECTS: [&str; 4] = ["connect_timeout", "registrar_timeout", "zmq_bind", "device_frontend"];
/// The ID of an argument that only commands have that send requests to an HTTP server.
const HTTP_CLIENT: &str = "admin_token_file";
/// The IDs of shared options, with the keys of their settings. No option of a command has such an ID.
const SHARED: [(&str, &str); 5] = [
    ("shared_server_key", settings::SERVER_KEY.key),
    ("shared_key_file", settings::KEY_FILE.key),
    ("shared_user", settings::USER.key),
    ("shared_password_file", settings::PASSWORD_FILE.key),
    ("shared_context", settings::CONTEXT.key),
];
const POINTER: &str = "Where to connect to, and how to be let in: xmsg help connection";

/// Returns the whole command line.
pub(crate) fn command() -> Command {
    let root = Cli::command().mut_subcommands(prepared);
    let template = help::root_template(&root);
    // These options are also accepted before the command. `given` returns an error if the command does not
    // use them.
    let root = with::<ContextOption>(with::<SecurityOptions>(root));
    let is_shared = |id: &str| SHARED.iter().any(|(shared, _)| *shared == id);
    root.mut_args(|arg| if is_shared(arg.get_id().as_str()) { arg.global(false) } else { arg })
        .help_template(template)
}

/// Adds to a command the shared options that it uses.
fn prepared(command: Command) -> Command {
    let has = |id: &str| command.get_arguments().any(|arg| arg.get_id() == id);
    let (connects, asks) = (CONNECTS.into_iter().any(has), has(HTTP_CLIENT));
    // This makes `--count -1` an invalid count, and not an unknown option `-1`.
    let takes = |arg: &Arg| arg.get_long().is_some() && arg.get_action().takes_values();
    let numbers = |arg: Arg| if takes(&arg) { arg.allow_negative_numbers(true) } else { arg };
    let mut command = command.mut_subcommands(prepared).mut_args(numbers);
    if connects {
        command = with::<SecurityOptions>(command);
    }
    if connects || asks {
        command = with::<ContextOption>(command);
        let before = command.get_after_help().map(|text| format!("{text}\n\n")).unwrap_or_default();
        command = command.after_help(before + POINTER);
    }
    command
}

/// Adds these options to the command. Their doc comment must not become the description of the command.
fn with<A: Args>(command: Command) -> Command {
    let (about, long_about) = (command.get_about().cloned(), command.get_long_about().cloned());
    A::augment_args(command).about(Resettable::from(about)).long_about(Resettable::from(long_about))
}

/// Parses the command line of this process.
pub(crate) fn parse() -> Result<Cli, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    let given = given(&mut command, &matches)?;
    settings::set_given(given);
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Returns the shared options that were given. Those after the command take precedence over those before it.
fn given(command: &mut Command, matches: &ArgMatches) -> Result<BTreeMap<&'static str, String>, clap::Error> {
    let mut given = BTreeMap::new();
    let (mut words, mut level) = (vec!["xmsg"], matches);
    loop {
        for (id, key) in SHARED {
            if let Ok(Some(value)) = level.try_get_one::<String>(id) {
                given.insert(key, value.clone());
            }
        }
        match level.subcommand() {
            Some((name, next)) => (words, level) = ([&words[..], &[name]].concat(), next),
            None => break,
        }
    }
    for (id, key) in SHARED {
        if given.contains_key(key) && level.try_get_one::<String>(id).is_err() {
            let what = format!("'--{key}' means nothing to `{}`: leave it out", words.join(" "));
            return Err(command.error(ErrorKind::UnknownArgument, what));
        }
    }
    Ok(given)
}

/// Returns the command line without hidden commands, for generators that do not check for them. The topics of
/// `xmsg help` are commands of their own there, so that shells complete them.
pub(crate) fn visible() -> Command {
    fn named(command: &Command) -> Command {
        // clap requires names with a static lifetime. They are made only once, at the end of a process.
        let name: &'static str = command.get_name().to_owned().leak();
        let named = Command::new(name).disable_help_subcommand(true);
        command.get_about().cloned().into_iter().fold(named, Command::about)
    }
    fn shown(command: &Command) -> impl Iterator<Item = &Command> {
        command.get_subcommands().filter(|command| !command.is_hide_set())
    }
    fn copy(command: &Command) -> Command {
        let copied = named(command).subcommands(shown(command).map(copy));
        copied.args(command.get_arguments().cloned()).groups(command.get_groups().cloned())
    }
    fn topic(command: &Command) -> Command {
        named(command).disable_help_flag(true).subcommands(shown(command).map(topic))
    }
    let all = command();
    let topics = shown(&all).map(topic).chain(PAGES.into_iter().filter_map(page_as_command));
    let topics: Vec<_> = topics.collect();
    copy(&all)
        .version(env!("CARGO_PKG_VERSION"))
        .mut_subcommand("help", |help| named(&help).subcommands(topics))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
        visible().debug_assert();
    }

    fn parsed(arguments: &[&str]) -> Result<BTreeMap<&'static str, String>, String> {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(arguments).map_err(|error| error.to_string())?;
        given(&mut command, &matches).map_err(|error| error.to_string())
    }

    #[test]
    fn shared_options_stand_before_or_behind_the_command() {
        // A key may begin with a hyphen.
        let key = format!("-{}", "x".repeat(39));
        for arguments in [
            &["xmsg", "--server-key", &key, "ping"][..],
            &["xmsg", "ping", "--server-key", &key],
            &["xmsg", "--server-key", "other", "ping", "--server-key", &key],
            &["xmsg", "bench", "latency", "--server-key", &key],
            &["xmsg", "registrar", "list", "--server-key", &key],
            &["xmsg", "list", "--server-key", &key],
        ] {
            let given = parsed(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
            assert_eq!(given.get("server-key"), Some(&key), "{arguments:?}");
        }
        assert_eq!(parsed(&["xmsg", "connections", "end", "1", "--context", "a"]).unwrap()["context"], "a");
    }

    #[test]
    fn options_that_mean_nothing_are_refused() {
        for command in [&["keygen"][..], &["passwd", "a", "b"], &["completions", "bash"], &["man"], &["demo"]]
        {
            for option in ["--server-key", "--key-file", "--user", "--password-file", "--context"] {
                let behind = [&["xmsg"], command, &[option, "x"]].concat();
                assert!(parsed(&behind).unwrap_err().contains(option), "{behind:?}");
                let before = [&["xmsg", option, "x"], command].concat();
                let error = parsed(&before).unwrap_err();
                assert!(
                    error.contains(&format!("'{option}' means nothing to `xmsg {}`", command[0])),
                    "{error}"
                );
            }
            for option in ["--proxy", "--registrar", "--admin"] {
                let words = [&["xmsg"], command, &[option, "x"]].concat();
                assert!(parsed(&words).unwrap_err().contains(option), "{words:?}");
            }
        }
    }
}
