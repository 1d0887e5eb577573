//! `xmsg doctor`: checks everything that keeps a command from working, and says what to do.
//!
//! | file | answers |
//! |---|---|
//! | `machine.rs` | Which limits does this machine set? |
//! | `files.rs` | Can contexts, keys, passwords and tokens be read, and by whom? |
//! | `network.rs` | Do the proxy, the registrar and the HTTP server answer, and what is wrong with them? |
//! | `finding.rs` | How is what was found written? |

mod files;
mod finding;
mod machine;
mod network;

use clap::Args;

use crate::admin::AdminOptions;
use crate::args::{ConnectOptions, RegistrarOptions};
use crate::exit::Exit;
use crate::settings;
use crate::signals::Interrupt;
use finding::Findings;

const EXAMPLES: &str = "\
Examples:
  xmsg doctor
  xmsg doctor --proxy 10.0.0.7 --server-key KEY --key-file me.key
  xmsg --context lab doctor
  xmsg doctor --json | jq '.checks[] | select(.level != \"ok\")'";

/// Check ports, versions, limits, names, clock, keys and contexts, and say what to do
///
/// Each line is the result of a check: OK, WARNING or PROBLEM, what was found, and, unless all is well, what
/// to do. A proxy need not have a registrar or an HTTP server, so that it is a problem only if its address
/// was given and it is not there.
///
/// Exit code 0: no problem was found, but maybe warnings. Exit code 1: there is a problem.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Write one object of JSON: version, warnings, problems, and checks with level, check, found and advice
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connect: ConnectOptions,

    #[command(flatten)]
    registrar: RegistrarOptions,

    #[command(flatten)]
    admin: AdminOptions,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let mut findings = Findings::default();
    tokio::select! {
        () = check(&arguments, &mut findings) => {}
        exit = interrupt.wait() => return Ok(exit),
    }
    findings.write(arguments.json)
}

/// Makes all checks, those first that others depend on.
async fn check(arguments: &Arguments, findings: &mut Findings) {
    findings.ok("version", format!("xmsg {}", env!("CARGO_PKG_VERSION")));
    machine::check(findings);
    files::check_contexts(findings);
    // Each value below may come from the context, which is not known then.
    if settings::current().is_ok() {
        let is_secured = files::check_credentials(findings);
        network::check(arguments, is_secured, findings).await;
    }
}
