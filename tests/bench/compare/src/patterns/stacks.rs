//! The stacks that are compared, and the command lines of their processes.

use std::path::PathBuf;
use std::process::Command;

use clap::ValueEnum;

use super::cases::{Case, Pattern};
use crate::peer::Threads;
use crate::plan::Plan;
use crate::report;

/// A library that is compared with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stack {
    Libzmq,
    Zeromq,
    Omq,
    Rzmq,
    RzmqUring,
    Xmsg,
    /// A bounded channel of tokio, which is compared with sockets within a process.
    Channel,
}

/// The paths of the programs, and the options of all of them.
#[derive(Debug)]
pub struct Programs {
    /// This program, which has the sockets of all stacks but libzmq.
    pub compare: PathBuf,
    pub libzmq_peer: PathBuf,
    /// The folder in which processes write latencies.
    pub folder: PathBuf,
    /// High-water marks, in messages, instead of those that a stack has by default.
    pub hwm: Option<u32>,
    pub show_errors: bool,
}

impl Stack {
    pub fn name(self) -> &'static str {
        match self {
            Self::Libzmq => report::REFERENCE,
            Self::Zeromq => "zeromq",
            Self::Omq => "omq-tokio",
            Self::Rzmq => "rzmq",
            Self::RzmqUring => "rzmq, io_uring",
            Self::Xmsg => report::OURS,
            Self::Channel => "tokio channel",
        }
    }

    /// Returns whether the stack is another crate that speaks ZeroMQ.
    pub fn is_other_crate(self) -> bool {
        matches!(self, Self::Zeromq | Self::Omq | Self::Rzmq | Self::RzmqUring)
    }

    /// Returns why the stack does not take part in a case, if it does not.
    pub fn lacks(self, case: &Case) -> Option<&'static str> {
        let is_pair = matches!(case.pattern, Pattern::Pair | Pattern::InprocPair);
        match self {
            Self::Zeromq | Self::Rzmq | Self::RzmqUring if is_pair => Some("it has no PAIR"),
            Self::Channel if case.pattern != Pattern::InprocPair => Some("it leads nowhere else"),
            _ => None,
        }
    }

    /// Returns whether the stack runs on tokio, so that there is a runtime to choose.
    pub fn has_threads(self) -> bool {
        self != Self::Libzmq
    }

    /// Returns the command of the process that runs this part of a pattern.
    pub fn process(self, programs: &Programs, part: &str, plan: &Plan, threads: Threads) -> Command {
        let mut command = if self == Self::Libzmq {
            Command::new(&programs.libzmq_peer)
        } else {
            let mut command = Command::new(&programs.compare);
            command.args(["pattern-peer", "--threads", &value_name(&threads), &value_name(&self)]);
            command
        };
        command.arg(part).args(plan.to_args());
        command
    }
}

/// Returns a value as it is written on the command line.
pub fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patterns::cases::CASES;

    #[test]
    fn ours_and_the_reference_have_every_pattern() {
        assert!(CASES.iter().all(|case| Stack::Libzmq.lacks(case).or(Stack::Xmsg.lacks(case)).is_none()));
    }

    #[test]
    fn stacks_and_runtimes_are_named_as_the_command_line_has_them() {
        assert_eq!(value_name(&Stack::RzmqUring), "rzmq-uring");
        assert_eq!(value_name(&Threads::Tasks), "tasks");
    }
}
