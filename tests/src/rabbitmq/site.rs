//! What the nodes of one cluster share: a folder, a cookie, and their own port mapper.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::kept::{self, Kept};
use crate::within;

/// The folder of RabbitMQ's programs in Debian. Those in the search path refuse to run, or change the user.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// Ports below those that the system gives to outgoing connections. So no client can take the port of a
/// broker that is down.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// The shared resources of a cluster. When this is dropped, after the nodes, the port mapper ends and the
/// folder is removed.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) cookie: String,
    epmd_port: u16,
    _epmd: Kept,
    folder: Folder,
}

impl Site {
    pub(super) async fn new(plugins: &[&str]) -> Self {
        let folder = Folder::new();
        let path = folder.path();
        let cookie: String = std::iter::repeat_with(fastrand::alphanumeric).take(20).collect();
        write(&path.join(".erlang.cookie"), &cookie);
        std::fs::set_permissions(path.join(".erlang.cookie"), PermissionsExt::from_mode(0o400))
            .expect("the file is there");
        write(&path.join("plugins"), &format!("[{}].\n", plugins.join(",")));
        make_installation(&path.join("rabbitmq"), plugins);
        let [epmd_port] = free_ports();
        let mut epmd = kept::command("epmd");
        epmd.args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"]);
        let epmd = Kept::start("epmd", epmd);
        within("epmd", listens(epmd_port)).await;
        Self { cookie, epmd_port, _epmd: epmd, folder }
    }

    /// Returns the path of a folder or file with this name in the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the command of the server. The caller adds what its node needs.
    pub(super) fn server(&self) -> Command {
        let mut command = kept::command(self.path("rabbitmq/sbin/rabbitmq-server"));
        self.set_environment(&mut command);
        command
    }

    /// Returns a command of RabbitMQ or Erlang that talks to a node.
    pub(super) fn tool(&self, program: &str) -> Command {
        let in_place = Path::new(PROGRAMS).join(program);
        let mut command = Command::new(if in_place.exists() { in_place } else { program.into() });
        self.set_environment(&mut command);
        command
    }

    fn set_environment(&self, command: &mut Command) {
        command
            .env("HOME", self.folder.path())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            // No Erlang process may start a port mapper in the background, which would keep running.
            .env("ERL_FLAGS", "-start_epmd false")
            .env("ERL_CRASH_DUMP_SECONDS", "0")
            // The settings of the machine are not used.
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILES", self.path("none"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("plugins"))
            .env("RABBITMQ_SCRIPTS_DIR", self.path("rabbitmq/sbin"))
            .env("RABBITMQ_PLUGINS_DIR", self.path("rabbitmq/plugins"))
            // The log folder of this site is used instead of the system's.
            .env("RABBITMQ_LOG_BASE", self.path("log"))
            .env("RABBITMQ_MNESIA_BASE", self.path("data"));
    }
}

/// A folder that is removed when this is dropped, and also when the test process is killed.
#[derive(Debug)]
struct Folder {
    folder: TempDir,
    remover: Child,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("xmsg-rabbitmq-").tempdir().expect("a folder");
        // When its input ends without a line, the shell knows that this process has died. The processes that
        // have the folder open die at the same time, and get a second for it. A line tells the shell that
        // there is nothing to do.
        let remover = Command::new("sh")
            .args(["-c", "trap '' HUP INT TERM; read -r line || { sleep 1; rm -rf -- \"$1\"; }", "sh"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A signal to the process group of the tests must not reach the shell.
            .process_group(0)
            .spawn()
            .expect("sh");
        Self { folder, remover }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        use std::io::Write;
        if let Some(mut input) = self.remover.stdin.take() {
            let _ = input.write_all(b"\n");
        }
        let _ = self.remover.wait();
    }
}

/// Returns ports of the loopback interface on which nobody listens. No port is returned twice in this
/// process.
pub(super) fn free_ports<const N: usize>() -> [u16; N] {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().expect("nobody panics with it");
    std::array::from_fn(|_| {
        let tried = std::iter::repeat_with(|| fastrand::u16(PORTS)).take(1000);
        let is_free = |port: &u16| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let port = tried.into_iter().find(is_free).expect("some port is free");
        given.insert(port);
        port
    })
}

/// Polls until somebody listens on a port, because there is no other notification.
async fn listens(port: u16) {
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes a copy of the system's installation with only the plugins and libraries that the broker needs. At
/// its start, RabbitMQ reads the description of each plugin, and looks for each of its modules in every
/// plugin's folder. With all plugins, that is a quarter of its start time.
fn make_installation(path: &Path, plugins: &[&str]) {
    let script = Path::new(PROGRAMS).join("rabbitmq-server").canonicalize().unwrap_or_else(|error| {
        panic!("{PROGRAMS}/rabbitmq-server: {error} (Debian: apt-get install rabbitmq-server)")
    });
    let system = script.ancestors().nth(2).expect("it is in sbin of some folder");
    std::fs::create_dir_all(path.join("plugins")).expect("the folder is new");
    for part in ["sbin", "escript"] {
        symlink(system.join(part), path.join(part)).expect("the folder is new");
    }
    let folders = std::fs::read_dir(system.join("plugins")).expect("an installation has plugins");
    let folders = folders.map(|folder| folder.expect("the folder can be read").path());
    // A map from the name of an application to its folder. The name of the folder also contains the version.
    let known: BTreeMap<String, PathBuf> = folders
        .filter_map(|folder| Some((folder.file_name()?.to_str()?.split_once('-')?.0.to_owned(), folder)))
        .collect();
    let mut wanted: Vec<String> = ["rabbit"].iter().chain(plugins).map(|&name| name.to_owned()).collect();
    let mut linked = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        let Some(folder) = known.get(&name) else {
            assert!(!plugins.contains(&&*name), "RabbitMQ of this system has no plugin {name}");
            // The application is part of Erlang itself.
            continue;
        };
        if linked.insert(name.clone()) {
            let file_name = folder.file_name().expect("a folder has a name");
            symlink(folder, path.join("plugins").join(file_name)).expect("the folder is new");
            wanted.extend(needs(&folder.join("ebin").join(format!("{name}.app"))));
        }
    }
}

/// Returns the names of the applications on which this one depends, from its description.
fn needs(description: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(description)
        .unwrap_or_else(|error| panic!("{}: {error}", description.display()));
    let list = text.split_once("{applications").and_then(|(_, rest)| rest.split_once(']'));
    let (list, _) = list.unwrap_or_else(|| panic!("{} names what it needs", description.display()));
    let names = list.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

pub(super) fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
