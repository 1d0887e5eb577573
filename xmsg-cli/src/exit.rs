//! Exit codes, and the reporting of errors.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use xmsg_core::ErrorKind;
use xmsg_core::text::escaped;
use xmsg_zmtp::Violation;

use crate::{output, settings};

/// How a command ended. The numbers are a part of the interface: scripts depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NoConnection = 3,
    NotAllowed = 4,
    TimedOut = 27,
    /// 128 plus the number of SIGINT, as in shells.
    Interrupted = 130,
    /// 128 plus the number of SIGTERM.
    Terminated = 143,
}

impl Exit {
    /// Returns whether a signal ended the command.
    pub(crate) fn is_interrupted(self) -> bool {
        matches!(self, Self::Interrupted | Self::Terminated)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The command line is not valid.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A request to a registrar failed.
#[derive(Debug)]
pub(crate) struct AtRegistrar(pub(crate) xmsg_core::Error);

impl fmt::Display for AtRegistrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for AtRegistrar {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// A request to the HTTP server of a daemon failed.
#[derive(Debug)]
pub(crate) struct AtAdmin(pub(crate) xmsg_core::Error);

impl fmt::Display for AtAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for AtAdmin {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// There is no peer at an endpoint, or it is of the wrong type.
#[derive(Debug)]
pub(crate) struct AtPeer(pub(crate) xmsg_core::Error);

impl fmt::Display for AtPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for AtPeer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Reports an error of the command line, or prints the requested help.
pub(crate) fn usage(error: &clap::Error) -> Exit {
    if !error.use_stderr() {
        // A closed pipe (`xmsg --help | head -1`) is not a failure.
        let _ = error.print();
        return Exit::Done;
    }
    let text = error.render().to_string();
    match text.strip_prefix("error: ") {
        Some(text) => say(text.trim_end()),
        // The help is printed because no argument was given.
        None => drop(error.print()),
    }
    Exit::Usage
}

/// Reports an error and returns the exit code. It is not a failure when the reader of our output has closed
/// the pipe.
pub(crate) fn report(error: &anyhow::Error) -> Exit {
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return Exit::Done;
    }
    let exit = exit_of(error);
    say(&describe(error, exit));
    exit
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if error.is::<Usage>() {
        return Exit::Usage;
    }
    let at_registrar = error.downcast_ref::<AtRegistrar>().map(|error| &error.0);
    let at_admin = error.downcast_ref::<AtAdmin>().map(|error| &error.0);
    let at_peer = error.downcast_ref::<AtPeer>().map(|error| &error.0);
    let cause = error.downcast_ref::<xmsg_core::Error>().or(at_registrar).or(at_admin).or(at_peer);
    match cause.map(xmsg_core::Error::kind) {
        // Only connecting and subscribing wait for an answer of the proxy.
        Some(kind) if kind == ErrorKind::Timeout || is_without_proxy(kind) => Exit::NoConnection,
        Some(ErrorKind::NotAllowed) => Exit::NotAllowed,
        Some(ErrorKind::InvalidTopic | ErrorKind::InvalidAddress | ErrorKind::InvalidOption) => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// Returns whether the error means that no answer came, because of a timeout or a missing connection.
pub(crate) fn is_unanswered(error: &xmsg_core::Error) -> bool {
    error.kind() == ErrorKind::Timeout || is_without_proxy(error.kind())
}

/// Returns whether the error means that there is no connection to a proxy.
pub(crate) fn is_without_proxy(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Refused | ErrorKind::UnknownHost | ErrorKind::WrongPort | ErrorKind::NotConnected
    )
}

/// Returns the mechanism of the other side and ours, if a mismatch between them is the cause.
fn mechanisms(error: &anyhow::Error) -> Option<(&str, &str)> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(Violation::MechanismMismatch { theirs, ours }) => Some((theirs.as_str(), *ours)),
        _ => None,
    })
}

/// Returns the advice which options to add or remove.
fn missing_options(theirs: &str) -> String {
    let options = match theirs {
        "CURVE" => "--server-key KEY, its public key, and --key-file FILE, ours from `xmsg keygen`",
        "PLAIN" => "--user NAME and --password-file FILE",
        "NULL" => {
            let without = "It has no security: leave out keys and users";
            return match settings::credentials() {
                Some(taken) => format!("{without}. {taken}"),
                None => format!("{without}."),
            };
        }
        _ => return format!("xmsg does not know {}: it knows NULL, PLAIN and CURVE.", escaped(theirs)),
    };
    format!("Add {options}; `xmsg help security` tells more.")
}

fn describe(error: &anyhow::Error, exit: Exit) -> String {
    if let (Exit::NotAllowed, Some((theirs, ours))) = (exit, mechanisms(error)) {
        // The first cause names the proxy, in a text about everything that may be wrong.
        let first = escaped(&error.to_string()).into_owned();
        let who = first.split(": check ").next().unwrap_or_default();
        let hint = missing_options(theirs);
        return format!("{who}: it wants security {}, not {ours}\n  {hint}", escaped(theirs));
    }
    // For these kinds, the first cause says everything, and the other causes repeat it in other words.
    let kind = error.downcast_ref::<xmsg_core::Error>().map(xmsg_core::Error::kind);
    let shown = match kind {
        Some(ErrorKind::Refused | ErrorKind::UnknownHost) => 1,
        _ => usize::MAX,
    };
    // Any cause may contain text from a peer or a registrar.
    let mut causes = error.chain().take(shown).map(|cause| escaped(&cause.to_string()).into_owned());
    let mut text = causes.next().unwrap_or_default();
    for cause in causes {
        // A question at the end of a message stays at its end.
        text = match text.strip_suffix('?') {
            Some(_) => format!("{text} ({cause})"),
            None => format!("{text}: {cause}"),
        };
    }
    let hint = match exit {
        Exit::NoConnection if error.is::<AtRegistrar>() => {
            [
                settings::origin(&settings::REGISTRAR),
                Some("Start one with `xmsg registrar run`, or say where it is with --registrar HOST[:PORT] or XMSG_REGISTRAR.".to_owned()),
            ]
        }
        Exit::NoConnection if error.is::<AtAdmin>() => {
            [
                settings::origin(&settings::ADMIN),
                Some("Start it with `xmsg-proxy --admin`, or say where it is with --admin HOST:PORT or XMSG_ADMIN.".to_owned()),
            ]
        }
        // The code that knows the peer gives the advice.
        Exit::NoConnection if error.is::<AtPeer>() => [None, None],
        Exit::NoConnection => {
            [
                settings::origin(&settings::PROXY),
                Some("Start one with `xmsg-proxy`, or say where it is with --proxy HOST[:PORT] or XMSG_PROXY.".to_owned()),
            ]
        }
        Exit::NotAllowed if !error.is::<AtAdmin>() => [settings::credentials(), None],
        Exit::Usage => return text + "\n\nFor more information, try '--help'.",
        _ => [None, None],
    };
    hint.into_iter().flatten().fold(text, |text, hint| text + "\n  " + &hint)
}

fn say(text: &str) {
    let mut stderr = io::stderr();
    let (on, off) =
        if stderr.is_terminal() && output::colour_wanted() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    // If standard error is closed, the message is dropped.
    let _ = writeln!(stderr, "{on}xmsg:{off} {text}");
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use xmsg_core::Error;

    use super::*;

    #[test]
    fn errors_have_their_exit_codes() {
        let of = |kind| exit_of(&Error::new(kind, "x").into());
        assert_eq!(of(ErrorKind::Refused), Exit::NoConnection);
        assert_eq!(of(ErrorKind::Timeout), Exit::NoConnection);
        assert_eq!(of(ErrorKind::UnknownHost), Exit::NoConnection);
        assert_eq!(of(ErrorKind::NoResources), Exit::Failed);
        assert_eq!(of(ErrorKind::InvalidTopic), Exit::Usage);
        assert_eq!(of(ErrorKind::Closed), Exit::Failed);
        assert_eq!(exit_of(&Usage("x".into()).into()), Exit::Usage);
        assert_eq!(exit_of(&anyhow::anyhow!("x")), Exit::Failed);
        let at_admin = |kind| exit_of(&AtAdmin(Error::new(kind, "x")).into());
        assert_eq!(at_admin(ErrorKind::Timeout), Exit::NoConnection);
        assert_eq!(at_admin(ErrorKind::NotAllowed), Exit::NotAllowed);
        assert_eq!(at_admin(ErrorKind::Remote), Exit::Failed);
    }

    #[test]
    fn only_a_closed_output_is_quiet() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        let output: anyhow::Result<()> = Err(pipe()).context("cannot write");
        assert_eq!(report(&output.unwrap_err()), Exit::Done);
        let socket = Error::new(ErrorKind::Io, "lost").with_source(pipe());
        assert_eq!(report(&socket.into()), Exit::Failed);
    }

    #[test]
    fn what_a_peer_answered_does_no_harm_to_a_terminal() {
        let error =
            Error::new(ErrorKind::Remote, "no\x1b[2J\nxmsg: all is well").with_source("\u{202e}\u{9b}");
        let text = describe(&error.into(), Exit::Failed);
        assert_eq!(text, r"no\u{1b}[2J\nxmsg: all is well: \u{202e}\u{9b}");
    }

    #[test]
    fn an_error_tells_its_causes_and_what_to_do() {
        let error = Error::new(ErrorKind::NotConnected, "no answer: is it there?").with_source("refused");
        let text = describe(&error.into(), Exit::NoConnection);
        assert!(text.starts_with("no answer: is it there? (refused)\n  Start one"), "{text}");
        let error = Error::new(ErrorKind::Refused, "nobody listens there").with_source("os error 111");
        let text = describe(&error.into(), Exit::NoConnection);
        assert!(text.starts_with("nobody listens there\n  Start one"), "{text}");
    }
}
