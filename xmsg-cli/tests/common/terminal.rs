//! Runs a program on a pseudo-terminal, and captures what it shows.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use vt100::Parser;

use super::within;

/// `xmsg` on a terminal. Dropping it kills it.
pub struct Terminal {
    child: Child,
    ours: File,
    screen: Arc<Screen>,
    /// The thread that reads the output to its end.
    reader: Option<std::thread::JoinHandle<()>>,
}

struct Screen {
    parser: Mutex<Parser>,
    /// What a user sees. As on a real terminal, an unfinished synchronized update is not visible.
    visible: Mutex<vt100::Screen>,
    /// All output, including control sequences.
    written: Mutex<Vec<u8>>,
    changed: Notify,
}

/// The beginning and the end of a synchronized update.
const BEGIN_UPDATE: &[u8] = b"\x1b[?2026h";
const END_UPDATE: &[u8] = b"\x1b[?2026l";

impl Screen {
    /// Shows the output of a program until its end.
    fn show(&self, mut output: impl Read) {
        let (mut buffer, mut parsed, mut is_updating) = ([0; 4096], 0, false);
        // When the program has ended, reading fails.
        while let Ok(len @ 1..) = output.read(&mut buffer) {
            let mut written = self.written.lock().unwrap();
            written.extend_from_slice(&buffer[..len]);
            let mut parser = self.parser.lock().unwrap();
            // An incomplete marker waits for the rest of it.
            loop {
                let rest = &written[parsed..];
                let marker = if is_updating { END_UPDATE } else { BEGIN_UPDATE };
                let found = rest.windows(marker.len()).position(|window| window == marker);
                let end = found.map_or_else(
                    || {
                        rest.len()
                            - (1..marker.len()).rev().find(|&len| rest.ends_with(&marker[..len])).unwrap_or(0)
                    },
                    |start| start + marker.len(),
                );
                parser.process(&rest[..end]);
                parsed += end;
                if !is_updating || found.is_some() {
                    *self.visible.lock().unwrap() = parser.screen().clone();
                }
                if found.is_none() {
                    break;
                }
                is_updating = !is_updating;
            }
            drop((written, parser));
            self.changed.notify_one();
        }
        self.changed.notify_one();
    }
}

impl Terminal {
    /// Starts `xmsg` with these arguments on a terminal with this number of columns and rows.
    pub fn start(columns: u16, rows: u16, environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        Self::start_at(Path::new(env!("CARGO_BIN_EXE_xmsg")), columns, rows, environment, arguments)
    }

    /// Starts a program at this path, as `start` does.
    pub fn start_at(
        program: &Path,
        columns: u16,
        rows: u16,
        environment: &[(&str, &str)],
        arguments: &[&str],
    ) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        set_size(&ours, columns, rows);
        let path = ptsname(&ours, Vec::new()).unwrap();
        let theirs =
            rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let end = || Stdio::from(theirs.try_clone().unwrap());
        // `setsid` makes the terminal the controlling one, so that the kernel signals a new size. It is then
        // replaced by the program.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program).args(arguments);
        for name in ["NO_COLOR", "XMSG_PROXY", "XMSG_ADMIN", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.env("TERM", "xterm-256color").envs(environment.iter().copied());
        let child = command.stdin(end()).stdout(end()).stderr(end()).kill_on_drop(true).spawn().unwrap();
        let ours = File::from(ours);
        let parser = Parser::new(some(rows), some(columns), 0);
        let screen = Arc::new(Screen {
            visible: Mutex::new(parser.screen().clone()),
            parser: Mutex::new(parser),
            written: Mutex::default(),
            changed: Notify::new(),
        });
        let (shown, output) = (screen.clone(), ours.try_clone().unwrap());
        let reader = std::thread::spawn(move || shown.show(output));
        Self { child, ours, screen, reader: Some(reader) }
    }

    /// Returns the text on the screen.
    pub fn text(&self) -> String {
        self.screen.visible.lock().unwrap().contents()
    }

    /// Returns all output, including control sequences.
    pub fn written(&self) -> String {
        String::from_utf8_lossy(&self.screen.written.lock().unwrap()).into_owned()
    }

    /// Waits until the screen is as wanted, and returns its text.
    pub async fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let shown = async {
            loop {
                let text = self.text();
                if wanted(&text) {
                    return text;
                }
                self.screen.changed.notified().await;
            }
        };
        let shown = tokio::time::timeout(Duration::from_secs(60), shown).await;
        shown.unwrap_or_else(|_| panic!("the screen never showed {what}:\n{}", self.text()))
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        self.screen.parser.lock().unwrap().screen_mut().set_size(some(rows), some(columns));
        set_size(&self.ours, columns, rows);
    }

    /// Sends a signal with this name.
    pub fn signal(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    /// Waits for the end, and returns the exit code.
    pub async fn end(&mut self) -> Option<i32> {
        let code = within("the end", self.child.wait()).await.unwrap().code();
        if let Some(reader) = self.reader.take() {
            let read = tokio::task::spawn_blocking(|| reader.join());
            within("the end of what it wrote", read).await.unwrap().unwrap();
        }
        code
    }
}

fn some(number: u16) -> NonZero<u16> {
    NonZero::new(number).unwrap()
}

fn set_size(terminal: impl std::os::fd::AsFd, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

/// Keeps the text of a screen beside the results of the tests, in `target/tmp/screens`.
pub fn keep(name: &str, text: &str) {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("screens");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{name}.txt")), text).unwrap();
}

/// The width of a character and the height of a line in pictures, in pixels.
const CHARACTER: [f32; 2] = [8.4, 18.0];
/// The margin around the text, in pixels.
const MARGIN: f32 = 12.0;

impl Terminal {
    /// Returns the screen as an SVG picture.
    pub fn svg(&self) -> String {
        let screen = self.screen.visible.lock().unwrap().clone();
        let (rows, columns) = screen.size();
        let (rows, columns) = (rows.get(), columns.get());
        let [width, height] = CHARACTER;
        let size = [width * f32::from(columns), height * f32::from(rows)].map(|size| size + 2.0 * MARGIN);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0}\" height=\"{1:.0}\" viewBox=\"0 0 {0:.0} {1:.0}\">\n\
             <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1b1f27\"/>\n\
             <g font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"14\" xml:space=\"preserve\">\n",
            size[0], size[1]
        );
        for row in 0..rows {
            // Adjacent characters with the same style are drawn together.
            let mut column = 0;
            while column < columns {
                let look = |column| screen.cell(row, column).map(|cell| (colour(cell), cell.bold()));
                let (start, first) = (column, look(column));
                let mut text = String::new();
                while column < columns && look(column) == first {
                    let contents = screen.cell(row, column).map_or("", |cell| cell.contents());
                    text.push_str(if contents.is_empty() { " " } else { contents });
                    column += 1;
                }
                let Some((colour, is_bold)) = first.filter(|_| !text.trim().is_empty()) else { continue };
                // The path of the program would mean nothing to a reader of the picture.
                let text = text.replace(env!("CARGO_BIN_EXE_xmsg"), "xmsg");
                let length = width * text.chars().count() as f32;
                let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                let [x, y] = [MARGIN + width * f32::from(start), MARGIN + height * (f32::from(row) + 0.75)];
                let weight = if is_bold { " font-weight=\"bold\"" } else { "" };
                writeln!(
                    svg,
                    "<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{length:.1}\" fill=\"{colour}\"{weight}>{text}</text>"
                )
                .unwrap();
            }
        }
        svg + "</g>\n</svg>\n"
    }
}

/// Returns the colour of a cell on a dark terminal.
fn colour(cell: &vt100::Cell) -> &'static str {
    match cell.fgcolor() {
        vt100::Color::Idx(1) => "#ff6b6b",
        vt100::Color::Idx(2) => "#7ee787",
        vt100::Color::Idx(3) => "#e3b341",
        vt100::Color::Idx(6) => "#56d4dd",
        _ if cell.dim() => "#7d8590",
        _ => "#d8dee9",
    }
}
