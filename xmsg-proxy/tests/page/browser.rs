//! A headless Chromium that is driven as a person would: what is there is found by its role and its name, as
//! a screen reader tells them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use xmsg_tests::within;

/// A browser with one window. It ends when it is dropped.
pub(crate) struct Browser {
    driver: String,
    session: String,
    child: Child,
    profile: tempfile::TempDir,
}

/// Something on the page.
#[derive(Clone, Debug)]
pub(crate) struct Element(Value);

/// What finds elements in the page: those of a role and with a name, if they can be seen. The driver is asked
/// afterwards what the browser itself makes of them.
const FIND: &str = r#"
const [role, name] = arguments;
const tags = {
  button: "button", link: "a[href]", heading: "h1, h2", textbox: "input:not([type=search]):not([type=radio]):not([type=checkbox]), textarea",
  searchbox: "input[type=search]", combobox: "select", radio: "input[type=radio]", checkbox: "input[type=checkbox]", row: "tr", dialog: "dialog[open]", region: "[role=region]", status: "[role=status]",
};
const dialog = document.querySelector("dialog[open]");
const root = dialog && role !== "dialog" ? dialog : document;
// A label for those who do not see replaces the text of a button, and the label of a field is its name.
const names = (node) => node.hasAttribute("aria-label") ? [node.getAttribute("aria-label")]
  : node.labels?.length ? [...node.labels].map((label) => label.textContent) : [node.textContent];
const named = (node) => names(node).some((text) => role === "row" ? text.includes(name) : text.trim() === name);
return [...root.querySelectorAll(tags[role])].filter((node) => node.checkVisibility() && named(node));
"#;

/// The driver starts Chromium in a process group of its own, so that killing the driver is not enough when a
/// test fails.
impl Drop for Browser {
    fn drop(&mut self) {
        let profile = self.profile.path().display().to_string();
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&profile) {
                // It may have ended meanwhile.
                let _ = std::process::Command::new("kill").arg("-KILL").arg(process.file_name()).status();
            }
        }
    }
}

impl Browser {
    /// Starts one that opens nothing yet.
    pub(crate) async fn start() -> Self {
        let profile = tempfile::tempdir().expect("a folder for the profile");
        let mut child = Command::new("chromedriver")
            .args(["--port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver (Debian: apt-get install chromium chromium-driver)");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let port = within("chromedriver", async {
            loop {
                let line = lines.next_line().await.expect("UTF-8").expect("it starts");
                if let Some((_, port)) = line.rsplit_once("started successfully on port ") {
                    return port.trim_end_matches('.').to_owned();
                }
            }
        })
        .await;
        // It goes on to write, and nobody is to hold it up.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let profile_argument = format!("--user-data-dir={}", profile.path().display());
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--force-color-profile=srgb",
            "--lang=en",
            "--window-size=1280,900",
            &profile_argument,
        ];
        let options = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let driver = format!("127.0.0.1:{port}");
        let made = command(&driver, "POST", "/session", &options).await;
        let session = made["sessionId"].as_str().expect("a session").to_owned();
        Self { driver, session, child, profile }
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        command(&self.driver, method, &format!("/session/{}{path}", self.session), &body).await
    }

    async fn cdp(&self, name: &str, parameters: Value) {
        self.ask("POST", "/goog/cdp/execute", json!({ "cmd": name, "params": parameters })).await;
    }

    /// Opens an address.
    pub(crate) async fn open(&self, address: &str) {
        self.ask("POST", "/url", json!({ "url": address })).await;
    }

    /// Where it is.
    pub(crate) async fn address(&self) -> String {
        self.ask("GET", "/url", Value::Null).await.as_str().expect("an address").to_owned()
    }

    /// Runs a function body in the page, and returns what it returns.
    pub(crate) async fn run(&self, script: &str, arguments: Value) -> Value {
        self.ask("POST", "/execute/sync", json!({ "script": script, "args": arguments })).await
    }

    /// All elements with this role and name that can be seen now.
    pub(crate) async fn all(&self, role: &str, name: &str) -> Vec<Element> {
        let found = self.run(FIND, json!([role, name])).await;
        found.as_array().cloned().unwrap_or_default().into_iter().map(Element).collect()
    }

    /// The element with this role and name; waits for it. The browser has to tell both in the same way to
    /// those who do not see.
    pub(crate) async fn find(&self, role: &str, name: &str) -> Element {
        let found = within(&format!("the {role} {name:?} on {}", self.text().await), async {
            loop {
                if let Some(first) = self.all(role, name).await.into_iter().next() {
                    return first;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        if let Some(id) =
            found.0.as_object().and_then(|object| object.values().next()).and_then(Value::as_str)
        {
            let told = self.ask("GET", &format!("/element/{id}/computedrole"), Value::Null).await;
            assert_eq!(told, json!(role), "{name}");
            if role != "row" {
                let told = self.ask("GET", &format!("/element/{id}/computedlabel"), Value::Null).await;
                assert_eq!(told, json!(name), "{role}");
            }
        }
        found
    }

    fn path(element: &Element, rest: &str) -> String {
        let id = element.0.as_object().and_then(|object| object.values().next()).and_then(Value::as_str);
        format!("/element/{}{rest}", id.expect("an element"))
    }

    /// Clicks on it.
    pub(crate) async fn click(&self, role: &str, name: &str) {
        let element = self.find(role, name).await;
        self.ask("POST", &Self::path(&element, "/click"), json!({})).await;
    }

    /// Follows a link that logs in as the operator.
    pub(crate) async fn log_in(&self, link: &str) {
        self.open(link).await;
        self.reads("Log out (operator)").await;
    }

    /// Clicks on the first that this selector finds: on what has no role of its own, such as a summary.
    pub(crate) async fn click_first(&self, selector: &str) {
        let found = self.run("return document.querySelector(arguments[0])", json!([selector])).await;
        self.ask("POST", &Self::path(&Element(found), "/click"), json!({})).await;
    }

    /// Puts what is downloaded into this folder.
    pub(crate) async fn download_to(&self, folder: &Path) {
        let to = json!({ "behavior": "allow", "downloadPath": folder });
        self.cdp("Browser.setDownloadBehavior", to).await;
    }

    /// Moves the pointer over it, and leaves it there.
    pub(crate) async fn hover(&self, role: &str, name: &str) {
        let Element(element) = self.find(role, name).await;
        self.run("arguments[0].scrollIntoView({ block: 'center' })", json!([element])).await;
        let to = json!({ "type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": element });
        let mouse = json!({ "type": "pointer", "id": "mouse", "parameters": { "pointerType": "mouse" }, "actions": [to] });
        self.ask("POST", "/actions", json!({ "actions": [mouse] })).await;
    }

    /// Writes into it, in place of what was there.
    pub(crate) async fn write(&self, role: &str, name: &str, text: &str) {
        let element = self.find(role, name).await;
        self.ask("POST", &Self::path(&element, "/clear"), json!({})).await;
        self.ask("POST", &Self::path(&element, "/value"), json!({ "text": text })).await;
    }

    /// Chooses this option, as it is shown.
    pub(crate) async fn choose(&self, name: &str, option: &str) {
        let Element(list) = self.find("combobox", name).await;
        let script = "return [...arguments[0].options].find((option) => option.textContent === arguments[1])";
        let option = Element(self.run(script, json!([list, option])).await);
        self.ask("POST", &Self::path(&option, "/click"), json!({})).await;
    }

    /// Presses keys where the focus is: `\u{e004}` is Tab, `\u{e007}` Enter, `\u{e00c}` Escape.
    pub(crate) async fn press(&self, keys: &str) {
        let keys: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
            })
            .collect();
        let action = json!({ "actions": [{ "type": "key", "id": "keys", "actions": keys }] });
        self.ask("POST", "/actions", action).await;
    }

    /// The text that can be seen.
    pub(crate) async fn text(&self) -> String {
        let text = self.run("return document.body.innerText", json!([])).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the text that can be seen is as it has to become.
    pub(crate) async fn until(&self, what: &str, good: impl Fn(&str) -> bool) -> String {
        let last = std::sync::Mutex::new(String::new());
        let wait = async {
            loop {
                let text = self.text().await;
                if good(&text) {
                    return text;
                }
                *last.lock().expect("nobody panics with it") = text;
            }
        };
        if let Ok(text) = tokio::time::timeout(xmsg_tests::PATIENCE, wait).await {
            return text;
        }
        let last = last.lock().expect("nobody panics with it");
        panic!("{what}: not within {:?}, but:\n{last}", xmsg_tests::PATIENCE)
    }

    /// Waits until a function body returns this text.
    pub(crate) async fn until_run(&self, what: &str, script: &str, wanted: &str) {
        within(what, async {
            while self.run(script, json!([])).await != wanted {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until the focus is on the field with this label, and the field is told to be wrong.
    pub(crate) async fn until_mistake(&self, label: &str) {
        let focused = "return document.activeElement.labels?.[0]?.textContent + (document.activeElement.getAttribute('aria-invalid') ?? '')";
        self.until_run("the field with the mistake", focused, &format!("{label}true")).await;
    }

    /// Waits until this can be read.
    pub(crate) async fn reads(&self, part: &str) -> String {
        self.until(part, |text| text.contains(part)).await
    }

    /// Makes the window as large as that of a phone, or of a desk.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.cdp("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Wants dark colours, or light ones.
    pub(crate) async fn dark(&self, is_dark: bool) {
        let value = if is_dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        self.cdp("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// Shows times in this zone, such as `Asia/Tokyo`.
    pub(crate) async fn zone(&self, name: &str) {
        self.cdp("Emulation.setTimezoneOverride", json!({ "timezoneId": name })).await;
    }

    /// A picture of what is shown: PNG.
    pub(crate) async fn screenshot(&self) -> Vec<u8> {
        let png = self.ask("GET", "/screenshot", Value::Null).await;
        BASE64.decode(png.as_str().expect("a picture")).expect("base64")
    }

    /// Keeps a picture of what is shown: `target/tmp/screens/page-NAME.png`.
    pub(crate) async fn picture(&self, name: &str) {
        let png = self.screenshot().await;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screens");
        std::fs::create_dir_all(&folder).expect("a folder for pictures");
        std::fs::write(folder.join(format!("page-{name}.png")), &png).expect("a picture is written");
        assert!(png.len() > 8 << 10, "{name}: a picture of {} bytes shows nothing", png.len());
    }

    /// What axe finds wrong for people with disabilities, serious or worse.
    pub(crate) async fn check(&self, name: &str) {
        let axe = std::fs::read_to_string(axe()).expect("axe-core: run the tests with ./tests/run");
        self.run(&format!("{axe}; return 0"), json!([])).await;
        let script = "const done = arguments[0]; axe.run(document, { resultTypes: ['violations'] }).then((r) => done(r.violations \
            .filter((v) => ['serious', 'critical'].includes(v.impact)).map((v) => `${v.id}: ${v.help}: ${v.nodes.map((n) => n.html).join(' ; ')}`)), \
            (e) => done([String(e)]))";
        let found = self.ask("POST", "/execute/async", json!({ "script": script, "args": [] })).await;
        assert_eq!(found, json!([]), "{name}");
        // Nothing is wider than the window, so that nobody has to push the page about.
        let is_wide = self
            .run(
                "return document.documentElement.scrollWidth > document.documentElement.clientWidth + 1",
                json!([]),
            )
            .await;
        assert_eq!(is_wide, json!(false), "{name}: the page is wider than the window");
    }

    /// Lines of the browser's console about mistakes: of scripts, and of what the policy of the page has
    /// refused.
    pub(crate) async fn mistakes(&self) -> Vec<String> {
        let lines = self.ask("POST", "/se/log", json!({ "type": "browser" })).await;
        let lines = lines.as_array().cloned().unwrap_or_default();
        lines
            .iter()
            .filter(|line| line["level"] == "SEVERE")
            .map(|line| line["message"].to_string())
            .collect()
    }

    /// Closes it in order.
    pub(crate) async fn close(mut self) {
        self.ask("DELETE", "", Value::Null).await;
        self.child.start_kill().expect("it runs");
        within("the end of chromedriver", self.child.wait()).await.expect("it ran");
    }
}

/// The checks of axe, where `tests/run` has put them.
fn axe() -> PathBuf {
    match std::env::var_os("XMSG_TEST_AXE") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/.npm/node_modules/axe-core/axe.min.js"),
    }
}

/// One command of the driver. What fails is said with what was asked.
async fn command(driver: &str, method: &str, path: &str, body: &Value) -> Value {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {driver}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    let (status, answer) =
        within(&format!("the answer to {method} {path}"), exchange(driver, &request)).await;
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    let shown: String = text.chars().take(300).collect();
    assert_eq!(status, "200", "{method} {path} {shown}: {}", answer["value"]["message"]);
    answer["value"].clone()
}

/// Sends a request, and reads the status and the body. The driver closes no connection, whatever it is asked
/// for.
async fn exchange(driver: &str, request: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(driver).await.expect("the driver listens");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut reader = BufReader::new(stream);
    let (mut status, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).await.expect("it answers") > 0, "it answers to the end");
        if line.trim().is_empty() {
            break;
        }
        let lower = line.trim().to_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        } else if lower.starts_with("http/") {
            lower.split(' ').nth(1).unwrap_or_default().clone_into(&mut status);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.expect("all of it");
    (status, body)
}
