//! `xmsg completions` and `xmsg man`, which are generated from the definitions of the command line.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use clap_complete::Shell;

use crate::args::{PAGES, command, page_as_command, visible};
use crate::exit::Exit;
use crate::output::{Output, note};

const EXAMPLES: &str = "\
Examples:
  xmsg completions bash > ~/.local/share/bash-completion/completions/xmsg
  xmsg completions zsh > ~/.zfunc/_xmsg              with ~/.zfunc in $fpath
  xmsg completions fish > ~/.config/fish/completions/xmsg.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  xmsg man | man -l -                                the page of xmsg itself
  xmsg man ~/.local/share/man/man1                   all pages: man xmsg-pub";

/// Write the completions for a shell to standard output
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

/// Write the manual pages
///
/// One page for each command, xmsg-pub.1 and so on, goes into DIR, which is created if necessary. Without
/// DIR, the page of xmsg itself goes to standard output.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct Man {
    /// The folder for the pages
    dir: Option<PathBuf>,
}

pub(crate) fn completions(arguments: &Completions) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut visible(), "xmsg", &mut script);
    write(&script)
}

pub(crate) fn man(arguments: &Man) -> anyhow::Result<Exit> {
    let Some(dir) = &arguments.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command()).render(&mut page)?;
        return write(&page);
    };
    pages(dir).with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
    note(format_args!("the manual pages are in {}", dir.display()));
    Ok(Exit::Done)
}

fn pages(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(command(), dir)?;
    for name in PAGES {
        if let Some(command) = page_as_command(name) {
            let mut page = Vec::new();
            let title = format!("xmsg-{name}");
            clap_mangen::Man::new(command.name(title.clone().leak() as &'static str)).render(&mut page)?;
            std::fs::write(dir.join(format!("{title}.1")), page)?;
        }
    }
    Ok(())
}

fn write(bytes: &[u8]) -> anyhow::Result<Exit> {
    let mut output = Output::stdout()?;
    output.write(bytes)?;
    output.flush()?;
    Ok(Exit::Done)
}
