//! `xmsg keygen` and `xmsg passwd`: keys and passwords for the security of a proxy.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::json;
use xmsg_core::security::{KeyPair, Password, PublicKey, read_key_file, read_secret};
use xmsg_core::text::json_escaped;
use xmsg_proxy::security::{Passwords, hash_password};
use zeroize::Zeroizing;

use crate::exit::{Exit, Usage};
use crate::output::{Output, check_folder, note};

const KEYGEN_EXAMPLES: &str = "\
Examples:
  xmsg keygen me.key                                 the public key is printed
  xmsg keygen me.key --show                          the public key again
  xmsg keygen --json";

const PASSWD_EXAMPLES: &str = "\
Examples:
  xmsg passwd users alice                            asks for the password
  pass show alice | xmsg passwd users alice
  xmsg passwd users alice --delete";

/// Make a pair of CURVE keys
///
/// The secret key goes into FILE, which only you can read; the public key is printed: give it to the other
/// side.
#[derive(Debug, Args)]
#[command(after_help = KEYGEN_EXAMPLES)]
pub(crate) struct Keygen {
    /// The file to write; it must not exist. Without it, both keys are printed
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// Print the public key of a file that exists
    #[arg(long, requires = "file")]
    show: bool,

    /// Write one JSON document: `public_key`, and `secret_key` or the `file` that has it
    #[arg(long)]
    json: bool,
}

/// Set the password of a PLAIN user
///
/// Asks for the password, and does not show it; without a terminal, it is the first line of standard input.
/// FILE is created if necessary, and only you can read it; it holds Argon2 hashes.
#[derive(Debug, Args)]
#[command(after_help = PASSWD_EXAMPLES)]
pub(crate) struct Passwd {
    /// The password file of the proxy
    file: PathBuf,

    /// The user's name: 1 to 255 bytes, without `:`
    user: String,

    /// Remove the user from the file
    #[arg(long)]
    delete: bool,
}

pub(crate) fn keygen(arguments: &Keygen) -> anyhow::Result<Exit> {
    if let (true, Some(file)) = (arguments.show, &arguments.file) {
        return say_key(read_key_file(file)?.public(), file, arguments.json);
    }
    let keys = KeyPair::generate()?;
    let secret = keys.secret().expose_text();
    let Some(file) = &arguments.file else {
        if arguments.json {
            let document = json!({ "public_key": keys.public().to_string(), "secret_key": *secret });
            say(&Zeroizing::new(format!("{document}\n")))?;
            return Ok(Exit::Done);
        }
        say(&Zeroizing::new(format!("public-key = \"{}\"\nsecret-key = \"{}\"\n", keys.public(), *secret)))?;
        return Ok(Exit::Done);
    };
    check_folder(file)?;
    let text = Zeroizing::new(format!(
        "# xmsg CURVE keys. Keep this file to yourself; the public key may be known.\n\
         public-key = \"{}\"\nsecret-key = \"{}\"\n",
        keys.public(),
        *secret
    ));
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let out = out.as_mut().map_err(|error| anyhow::anyhow!("{}: {error}", unwritable(file)))?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).with_context(|| unwritable(file))?;
    note(format_args!("the secret key is in {}; the public key:", file.display()));
    say_key(keys.public(), file, arguments.json)
}

/// Writes the public key of the pair in this file.
fn say_key(key: &PublicKey, file: &Path, as_json: bool) -> anyhow::Result<Exit> {
    if as_json {
        let document = json!({ "public_key": key.to_string(), "file": file.display().to_string() });
        say(&format!("{}\n", json_escaped(&document.to_string())))?;
    } else {
        say(&format!("{key}\n"))?;
    }
    Ok(Exit::Done)
}

pub(crate) fn passwd(arguments: &Passwd) -> anyhow::Result<Exit> {
    let Passwd { file, user, delete } = arguments;
    if user.is_empty() || user.len() > 255 || user.contains([':', '\n', '#']) {
        bail!(Usage("a user's name has 1 to 255 bytes, and neither `:` nor `#`".to_owned()));
    }
    check_folder(file)?;
    let before = if file.exists() { read_secret(file)? } else { Zeroizing::new(String::new()) };
    Passwords::parse(&before).with_context(|| file.display().to_string())?;
    let is_theirs = |line: &str| line.trim().split_once(':').is_some_and(|(name, _)| name == user);
    let known = before.lines().any(is_theirs);
    let mut text = Zeroizing::new(String::new());
    for line in before.lines().filter(|line| !is_theirs(line)) {
        text.push_str(line);
        text.push('\n');
    }
    if *delete {
        if !known {
            bail!("there is no user {user:?} in {}", file.display());
        }
    } else {
        let password = read_password()?;
        let hash = hash_password(password.expose())?;
        for part in [user, ":", &hash, "\n"] {
            text.push_str(part);
        }
    }
    // The file is replaced as a whole, so that readers see either the old or the new one. Only the owner may
    // read a temporary file.
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut out = tempfile::NamedTempFile::new_in(folder).with_context(|| unwritable(file))?;
    out.write_all(text.as_bytes())
        .and_then(|()| out.as_file().sync_all())
        .with_context(|| unwritable(file))?;
    out.persist(file).with_context(|| unwritable(file))?;
    let done = match (*delete, known) {
        (true, _) => "deleted",
        (false, true) => "changed",
        (false, false) => "added",
    };
    note(format_args!("user {user:?} {done}; SIGHUP makes a running proxy read {}", file.display()));
    Ok(Exit::Done)
}

fn read_password() -> anyhow::Result<Password> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return ask_password();
    }
    let mut line = Zeroizing::new(String::new());
    // No more bytes are read than a password may have.
    io::BufRead::read_line(&mut stdin.lock().take(4096), &mut line).context("cannot read the password")?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!(Usage(
            "no password on standard input: `printf %s PASSWORD | xmsg passwd FILE USER`".to_owned()
        ));
    }
    Ok(Password::new(password)?)
}

/// Asks the user at the terminal for a password. The input is not shown, so it is typed twice.
fn ask_password() -> anyhow::Result<Password> {
    let _hidden = Hidden::new().context("cannot hide what is typed: pipe the password in")?;
    let ask = |prompt: &str| {
        let mut line = Zeroizing::new(String::new());
        // If standard error is closed, the prompt is dropped.
        let _ = write!(io::stderr(), "{prompt}").and_then(|()| io::stderr().flush());
        io::BufRead::read_line(&mut io::stdin().lock().take(4096), &mut line)
            .context("cannot read the password from the terminal")?;
        anyhow::Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
    };
    let password = ask("Password: ")?;
    if password.is_empty() {
        bail!(Usage("an empty password lets in whoever knows the name: type one".to_owned()));
    }
    if ask("The same again: ")? != password {
        bail!("the two passwords differ: nothing was changed, try again");
    }
    Ok(Password::new(password.as_str())?)
}

/// A terminal that does not show its input until this is dropped. Earlier input is discarded.
struct Hidden(Termios);

impl Hidden {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        // The end of the line is shown.
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // Errors are ignored: the terminal may be gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut output = Output::stdout()?;
    output.write(text.as_bytes())?;
    output.flush()
}

fn unwritable(file: &Path) -> String {
    format!("cannot write {}", file.display())
}
