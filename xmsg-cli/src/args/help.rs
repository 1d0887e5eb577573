//! Help: the list of commands in groups, and the pages that belong to no command.

use std::fmt::Write as _;

use anyhow::bail;
use clap::{Arg, Args, Command};

use super::{ConnectOptions, ContextOption, RegistrarOptions, SecurityOptions, command};
use crate::admin::AdminOptions;
use crate::exit::{Exit, Usage};
use crate::output::Output;
use crate::settings;

/// The commands in their groups, each with its description. An empty description stands for that of the
/// command itself.
const GROUPS: [(&str, &[(&str, &str)]); 9] = [
    (
        "Messages",
        &[
            ("pub", "Publish messages"),
            ("sub", "Subscribe to topics, and write their messages"),
            ("req", "Publish a request, and write the reply"),
            ("reply", "Answer the requests to topics"),
        ],
    ),
    (
        "Inspect",
        &[
            ("ping", "Check that a proxy answers, and how fast"),
            ("top", "Watch a proxy: connections and topics by rate, and who is slow"),
            ("info", "Show version, connections, totals, losses and memory of a proxy"),
            ("connections", "List the connections of a proxy, or end one of them"),
            ("topics", "List topics with their rates"),
            ("doctor", "Check ports, versions, limits, names, clock and keys, and say what to do"),
        ],
    ),
    (
        "Measure",
        &[
            ("bench", "Measure throughput, latency, connections and subscriptions"),
            ("demo", "See xmsg at work: proxy, publishers and subscribers in one process"),
        ],
    ),
    ("Record", &[("record", "Record messages into a file"), ("replay", "Publish a recording")]),
    ("Registrar", &[("registrar", "Find who publishes and who subscribes, or run a registrar")]),
    ("Connect", &[("connect", "Manage outgoing connections and channels: ZeroMQ sockets and RabbitMQ")]),
    (
        "ZeroMQ",
        &[
            ("zmq", "Send, receive, ask and answer over plain ZeroMQ sockets"),
            ("device", "Run a ZeroMQ device: forwarder, streamer or queue"),
        ],
    ),
    ("Security", &[("keygen", "Make a pair of CURVE keys"), ("passwd", "Set the password of a PLAIN user")]),
    (
        "Settings",
        &[
            ("context", "Keep addresses and keys under a name, and choose among them"),
            ("completions", "Write the completions for a shell"),
            ("man", "Write the manual pages"),
            ("help", "Explain a command, or a page: connection, security, exit-codes"),
        ],
    ),
];

const ROOT_END: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 no connection, 4 not allowed, 27 timed out, 130 interrupted, 143 terminated.
Try `xmsg demo` for a first look: it needs nothing else to run.";

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed while running
  2    usage: an option, a topic or an address that cannot be used
  3    cannot connect to the proxy, the registrar or a peer
  4    not allowed: keys, password or token are wrong, or give no right to do this
  27   timed out
  130  interrupted
  143  asked to end by SIGTERM
";

const CONNECTION: &str = "\
Where to connect to. All commands that connect take these options; their own help does not list them. A value is taken from the
first of these that has one: the option, the variable in the environment, the context, the default. Errors say which of them
it was.
";

const CONTEXTS: &str = "\
Contexts:
  A context is a named set of such values. Contexts are stored in ~/.config/xmsg/contexts.toml (or in XMSG_CONFIG):

  xmsg context add lab --proxy 10.0.0.7 --server-key KEY --key-file me.key --select
  xmsg context select home                           for all commands from now on
  xmsg --context lab ping                            for this one
  xmsg --context '' ping                             without any
  xmsg context show                                  each value, and where it comes from
";

const SECURITY: &str = "\
How to be let in. The proxy and the registrar say which mechanism they want; both sides must agree.

  NULL   nothing: whoever reaches the port is let in
  PLAIN  name and password, in clear text: --user and --password-file
  CURVE  keys, and everything is encrypted: --server-key, and --key-file unless the proxy lets in every key

  xmsg keygen me.key                                 our keys; the public one is for the proxy's list of clients
  xmsg ping --server-key KEY --key-file me.key
  xmsg passwd users alice                            for the proxy's password file
  xmsg ping --user alice --password-file my.password

Files with secrets must be readable by their owner alone (chmod 600).
";

const VARIABLES: &str = "\
Environment:
  Besides those above: XMSG_CONFIG (the file of contexts), XMSG_DELIVERY (at-most-once or at-least-once),
  XMSG_NO_CHECK_CONNECTION, XMSG_NO_CHECK_SUBSCRIPTION (if set: don't ask the proxy for confirmation), RUST_LOG (as -v, by
  module), NO_COLOR.
";

const EXAMPLES: &str = "\
Examples:
  xmsg help pub
  xmsg help registrar find
  xmsg help connection";

/// Explain a command, or something that several commands have in common
///
/// Pages besides those of the commands: connection (addresses, environment, contexts), security, exit-codes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Help {
    /// The command, or the page
    #[arg(value_name = "COMMAND")]
    words: Vec<String>,
}

/// Returns the template of the help of `xmsg` itself, with the list of commands in groups.
pub(super) fn root_template(root: &Command) -> String {
    let (head, name) = (root.get_styles().get_header(), root.get_styles().get_literal());
    let mut text = String::from("{about}\n\n{usage-heading} xmsg [OPTIONS] COMMAND [ARGUMENTS]\n\n");
    let commands: Vec<_> = root.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    let mut row = |group: &str, command: &Command, words: &str| {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let words = if words.is_empty() { &about } else { words };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{head}{group:<10}{head:#} {name}{:<12}{name:#} {words}", command.get_name());
    };
    let mut known = Vec::new();
    for (group, listed) in GROUPS {
        let mut heading = group;
        for (name, words) in listed {
            if let Some(command) = commands.iter().find(|command| command.get_name() == *name) {
                row(heading, command, words);
                (heading, known) = ("", [&known[..], &[*name]].concat());
            }
        }
    }
    let mut heading = "Other";
    for command in commands.iter().filter(|command| !known.contains(&command.get_name())) {
        row(heading, command, "");
        heading = "";
    }
    let _ = write!(text, "\n{head}Options:{head:#}\n{{options}}\n\n{ROOT_END}");
    text
}

/// Returns the page with this name, if there is one.
fn page(name: &str) -> Option<String> {
    let text = match name {
        "connection" => {
            let options = ConnectOptions::augment_args(Command::new("xmsg"));
            let options = AdminOptions::augment_args(RegistrarOptions::augment_args(options));
            let options = ContextOption::augment_args(SecurityOptions::augment_args(options));
            format!("{CONNECTION}\n{}\n{CONTEXTS}\n{VARIABLES}", list(options))
        }
        "security" => {
            format!("{SECURITY}\n{}", list(SecurityOptions::augment_args(Command::new("xmsg"))))
        }
        "exit-codes" => EXIT_CODES.to_owned(),
        _ => return None,
    };
    Some(text)
}

/// Returns the help of the options of a command, including hidden ones, each with its default and its
/// variable.
fn list(command: Command) -> String {
    let shown = |arg: Arg| {
        let Some(setting) = settings::of_option(arg.get_long().unwrap_or_default()) else {
            return arg.hide(false);
        };
        let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        // The default and the variable are on their own line, where they are easy to find.
        let default = setting.default.map(|value| format!(" [default: {value}]")).unwrap_or_default();
        let _ = write!(help, "\n[env: {}]{default}", setting.variable());
        arg.hide(false).help(help)
    };
    let command = command.mut_args(shown).disable_help_flag(true).max_term_width(100);
    command.help_template("{all-args}").render_help().to_string()
}

/// The names of the pages that belong to no command.
pub(crate) const PAGES: [&str; 3] = ["connection", "security", "exit-codes"];

/// Makes a command whose description is this page, for the manual.
pub(crate) fn page_as_command(name: &'static str) -> Option<Command> {
    let about = match name {
        "connection" => "Where xmsg connects to: options, environment, contexts",
        "security" => "How xmsg is let in: options for PLAIN and CURVE",
        _ => "The exit codes of xmsg",
    };
    let command = Command::new(name).about(about).long_about(page(name)?);
    Some(command.disable_help_flag(true).disable_help_subcommand(true))
}

/// Returns the complete help of a command, with blank lines between options only if the help has long parts.
fn rendered(command: &mut Command) -> String {
    let has_more = |arg: &Arg| !arg.is_hide_set() && arg.get_long_help().is_some();
    let is_long = command.get_long_about().is_some() || command.get_arguments().any(has_more);
    let text = if is_long { command.render_long_help() } else { command.render_help() };
    text.to_string()
}

pub(crate) fn help(arguments: &Help) -> anyhow::Result<Exit> {
    let mut command = command();
    command.build();
    let words: Vec<_> = arguments.words.iter().map(String::as_str).collect();
    let mut at = &mut command;
    let text = match words[..] {
        [name] if at.find_subcommand(name).is_none() && page(name).is_some() => {
            page(name).unwrap_or_default()
        }
        _ => {
            for word in words {
                let known: Vec<_> = at
                    .get_subcommands()
                    .filter(|command| !command.is_hide_set())
                    .map(|command| command.get_name().to_owned())
                    .collect();
                let name = at.get_bin_name().unwrap_or("xmsg").to_owned();
                match at.find_subcommand_mut(word) {
                    Some(next) => at = next,
                    None if known.is_empty() => bail!(Usage(format!("`{name}` has no command '{word}'"))),
                    None => bail!(Usage(format!(
                        "there is no help about '{word}': `{name}` has {}; other pages: {}",
                        known.join(", "),
                        PAGES.join(", ")
                    ))),
                }
            }
            rendered(at).trim_end().to_owned() + "\n"
        }
    };
    let mut output = Output::stdout()?;
    output.write(text.as_bytes())?;
    output.flush()?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_group_and_the_list_fits_a_screen() {
        let listed: Vec<_> =
            GROUPS.iter().flat_map(|(_, commands)| *commands).map(|(name, _)| *name).collect();
        let mut root = command();
        root.build();
        for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            assert_eq!(
                listed.iter().filter(|listed| **listed == name).count(),
                1,
                "{name} belongs to GROUPS"
            );
        }
        let text = rendered(&mut root);
        assert!(!text.contains("Other "), "{text}");
        assert!(text.lines().count() <= 40, "{text}");
        let long = text.lines().find(|line| line.len() > 120);
        assert_eq!(long, None);
    }

    fn each(command: &mut Command, check: &mut dyn FnMut(&mut Command)) {
        check(command);
        for command in command.get_subcommands_mut().filter(|command| !command.is_hide_set()) {
            each(command, check);
        }
    }

    #[test]
    fn every_command_has_examples_and_none_the_options_that_all_share() {
        let mut root = command();
        root.build();
        for command in root.get_subcommands_mut().filter(|command| !command.is_hide_set()) {
            each(command, &mut |command| {
                let text = rendered(command);
                let name = command.get_bin_name().unwrap_or_default().to_owned();
                assert!(text.contains("Examples:"), "{name} has no examples");
                for option in ["--server-key", "--password-file", "--connect-timeout", "--admin-token-file"] {
                    let shows = text.lines().any(|line| line.trim_start().starts_with(option));
                    assert!(!shows || name.starts_with("xmsg context"), "{name} lists {option}: {text}");
                }
            });
        }
    }

    /// An option has the same unit and the same kind of value in all commands, and a letter stands for the
    /// same option.
    #[test]
    fn options_of_one_name_are_alike() {
        let mut kinds = std::collections::BTreeMap::new();
        let mut letters = std::collections::BTreeMap::new();
        let mut root = command();
        root.build();
        each(&mut root, &mut |command| {
            let name = command.get_bin_name().unwrap_or_default().to_owned();
            for arg in command.get_arguments() {
                let Some((letter, long)) = arg.get_short().zip(arg.get_long()) else { continue };
                let (known, first) = letters.entry(letter).or_insert((long.to_owned(), name.clone()));
                assert_eq!(known.as_str(), long, "-{letter} of {first} and of {name}");
            }
            for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
                let Some(long) = arg.get_long() else { continue };
                let value: Vec<_> =
                    arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
                let (kind, first) = kinds.entry(long.to_owned()).or_insert((value.clone(), name.clone()));
                assert_eq!(*kind, value, "--{long} of {first} and of {name}");
                assert!(!value.iter().any(|value| value == "SECONDS"), "--{long} of {name}");
            }
        });
    }

    #[test]
    fn the_page_of_connections_has_every_option_and_variable() {
        let text = page("connection").unwrap();
        for setting in settings::ALL {
            assert!(text.contains(&format!("--{} <", setting.key)), "{}: {text}", setting.key);
            let default = setting.default.map(|value| format!(" [default: {value}]")).unwrap_or_default();
            let places = format!("[env: {}]{default}\n", setting.variable());
            assert!(text.contains(&places), "{}: {text}", setting.key);
        }
        assert!(text.contains("XMSG_CONTEXT") && text.contains("xmsg context add"), "{text}");
        for name in PAGES {
            assert!(page_as_command(name).is_some() && command().find_subcommand(name).is_none(), "{name}");
        }
    }
}
