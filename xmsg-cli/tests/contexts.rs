//! Contexts: addresses and credentials in a file of the user, and which other sources take precedence.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{Ended, Running, proxy, within, xmsg};

/// A user with a file of contexts.
struct User {
    folder: tempfile::TempDir,
    file: String,
}

impl User {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settings/contexts.toml").display().to_string();
        Self { folder, file }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with(&[], arguments).await
    }

    async fn run_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
        let variables = [&[("XMSG_CONFIG", &*self.file)], variables].concat();
        Running::start_with(&variables, arguments).end().await
    }

    fn write(&self, text: &str) {
        std::fs::create_dir_all(self.folder.path().join("settings")).unwrap();
        std::fs::write(&self.file, text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_says_where_the_proxy_is() {
    let user = User::new();
    let (_proxy, address) = proxy().await;
    user.run(&["context", "add", "lab", "--proxy", &address]).await.done();
    user.run(&["context", "add", "away", "--proxy", "127.0.0.1:1", "--select"]).await.done();
    assert_eq!(std::fs::metadata(&user.file).unwrap().permissions().mode() & 0o777, 0o600);
    let ping = ["ping", "-n", "1"];
    // The selected context is used, and the error names it.
    let failed = user.run(&ping).await;
    let place = format!("This address is `proxy` of the context away ({}, line ", user.file);
    failed.failed(3, &place);
    // An option or a variable chooses the context for one command. The option takes precedence.
    user.run(&[&["--context", "lab"], &ping[..]].concat()).await.done();
    user.run_with(&[("XMSG_CONTEXT", "lab")], &ping).await.done();
    user.run_with(&[("XMSG_CONTEXT", "away")], &[&ping[..], &["--context", "lab"]].concat()).await.done();
    // The environment takes precedence over a context, and an option over both.
    user.run_with(&[("XMSG_PROXY", &address)], &ping).await.done();
    let wrong =
        user.run_with(&[("XMSG_PROXY", "127.0.0.1:1")], &[&ping[..], &["--context", "lab"]].concat()).await;
    wrong.failed(3, "This address is XMSG_PROXY in the environment.");
    let given = [&ping[..], &["--proxy", &address]].concat();
    user.run_with(&[("XMSG_PROXY", "127.0.0.1:1")], &given).await.done();
    user.run(&["context", "select", "lab"]).await.done();
    user.run(&ping).await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_are_listed_shown_and_removed() {
    let user = User::new();
    assert_eq!(user.run(&["context", "list"]).await.text(), "");
    for (name, more) in [("lab", &["--registrar", "10.0.0.8"][..]), ("home", &["--select"])] {
        user.run(&[&["context", "add", name, "--proxy", "10.0.0.7"], more].concat()).await.done();
    }
    assert_eq!(
        user.run(&["context", "list"]).await.text(),
        "*\thome\t10.0.0.7\t\t\n\tlab\t10.0.0.7\t10.0.0.8\t\n"
    );
    let json = |text: String| -> Vec<serde_json::Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let listed = json(user.run(&["context", "list", "--json"]).await.text());
    assert_eq!((&listed[1]["name"], &listed[1]["selected"]), (&"lab".into(), &false.into()));
    assert_eq!(listed[1]["values"]["registrar"], "10.0.0.8");

    // Each value is shown with its source.
    let shown = user.run_with(&[("XMSG_ADMIN", "localhost:1")], &["context", "show", "lab"]).await.text();
    for line in [
        format!("proxy\t10.0.0.7\t`proxy` of the context lab ({}, line ", user.file),
        "admin\tlocalhost:1\tXMSG_ADMIN in the environment".to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown.starts_with(&line)), "{line}: {shown}");
    }
    let shown = user.run(&["context", "show", "--json"]).await.text();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["context"], &shown["values"]["proxy"]["value"]), (&"home".into(), &"10.0.0.7".into()));
    assert_eq!(shown["values"]["registrar"]["source"], "the default of --registrar");

    user.run(&["context", "add", "lab", "--proxy", "x"]).await.failed(2, "exists: replace it with --force");
    user.run(&["context", "add", "lab", "--proxy", "10.0.0.9", "--force"]).await.done();
    user.run(&["context", "remove", "home"]).await.done();
    assert_eq!(user.run(&["context", "list"]).await.text(), "\tlab\t10.0.0.9\t\t\n");
    user.run(&["context", "select", "lab"]).await.done();
    user.run(&["context", "select", "--none"]).await.done();
    assert!(user.run(&["context", "show"]).await.text().contains("the default of --proxy"));
    for arguments in
        [&["context", "select", "home"][..], &["context", "remove", "home"], &["ping", "--context", "home"]]
    {
        user.run(arguments).await.failed(2, "no context \"home\"");
    }
}

/// Concurrent commands do not undo each other's changes, and comments are kept.
#[tokio::test(flavor = "multi_thread")]
async fn contexts_that_are_added_at_the_same_time_are_all_there() {
    const COUNT: usize = 24;
    let user = User::new();
    user.write("# mine\n\n# by hand\n[contexts.lab]\nproxy = \"10.0.0.7\" # since March\n");
    let names: Vec<_> = (0..COUNT).map(|n| format!("c{n}")).collect();
    let add = async |name: &String| user.run(&["context", "add", name, "--proxy", "a"]).await;
    for ended in futures::future::join_all(names.iter().map(add)).await {
        ended.done();
    }
    assert_eq!(user.run(&["context", "list", "--json"]).await.text().lines().count(), COUNT + 1);
    let text = std::fs::read_to_string(&user.file).unwrap();
    for comment in ["# mine\n", "# by hand\n[contexts.lab]\n", "# since March\n"] {
        assert!(text.contains(comment), "{text}");
    }
    assert_eq!(std::fs::metadata(&user.file).unwrap().permissions().mode() & 0o777, 0o600);
    // Something that is not an ordinary file is not replaced.
    let device = [("XMSG_CONFIG", "/dev/null")];
    let ended = user.run_with(&device, &["context", "add", "lab", "--proxy", "a"]).await;
    ended.failed(1, "cannot write the contexts to /dev/null: it is no ordinary file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_has_no_value_that_nobody_could_use() {
    let user = User::new();
    let key = "a".repeat(40);
    let (missing, bad_token) = (user.path("missing"), user.path("token"));
    std::fs::write(&bad_token, "two words").unwrap();
    std::fs::set_permissions(&bad_token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let open_token = user.path("open");
    std::fs::write(&open_token, "0123456789abcdef").unwrap();
    std::fs::set_permissions(&open_token, std::fs::Permissions::from_mode(0o644)).unwrap();
    for (code, arguments, says) in [
        (2, &["--proxy", "a:70000"][..], "invalid value 'a:70000' for --proxy: "),
        (2, &["--registrar", "a b"], "for --registrar: "),
        (2, &["--admin", "https://a"], "for --admin: "),
        (2, &["--server-key", "abc"], "--server-key: "),
        (2, &["--key-file", &missing], "--key-file is given without --server-key"),
        (1, &["--server-key", &key, "--key-file", &missing], "--key-file: "),
        (2, &["--user", "me"], "--user is given without --password-file"),
        (1, &["--user", "me", "--password-file", &missing], "--password-file: "),
        (2, &["--admin-token-file", &bad_token], "--admin-token-file: "),
        (2, &["--admin-token-file", &open_token], "chmod 600"),
        (2, &[], "give --proxy"),
    ] {
        user.run(&[&["context", "add", "lab"], arguments].concat()).await.failed(code, says);
    }
    user.run(&["context", "add", "a b", "--proxy", "a"]).await.failed(2, "can't be the name of a context");
    assert!(!std::path::Path::new(&user.file).exists());
}

/// The key of a context is accepted, and an error about it names its position.
#[tokio::test(flavor = "multi_thread")]
async fn a_context_has_keys() {
    let user = User::new();
    let public = xmsg(&["keygen", &user.path("proxy.key")]).await.text();
    let ours = xmsg(&["keygen", &user.path("our.key")]).await.text();
    let settings = xmsg_proxy::security::settings::Settings {
        mechanism: xmsg_proxy::security::settings::MechanismName::Curve,
        key_file: Some("proxy.key".into()),
        clients: vec![xmsg_proxy::security::settings::Client {
            key: Some(ours.trim().to_owned()),
            ..Default::default()
        }],
        ..Default::default()
    };
    let (mechanism, rules) = settings.load(user.folder.path()).unwrap();
    let proxy = xmsg_proxy::Proxy::bind("127.0.0.1:0").security(mechanism, rules).start().await.unwrap();
    let address = proxy.address().to_string();
    let timeout = ["--connect-timeout", "60s"];
    let (server_key, key_file) = (public.trim(), user.path("our.key"));
    let add = ["context", "add", "lab", "--proxy", &address, "--server-key", server_key];
    user.run(&[&add[..], &["--key-file", &key_file, "--select"]].concat()).await.done();
    let ping = [&["ping", "-n", "1"], &timeout[..]].concat();
    user.run(&ping).await.done();

    // Without the key file, new keys are generated, which the proxy does not know and rejects.
    user.run(&[&add[..], &["--force", "--select"]].concat()).await.done();
    let refused = user.run(&ping).await;
    refused.failed(4, "Taken from: `server-key` of the context lab (");
    // An option can disable a value of the context.
    user.run(&[&ping[..], &["--server-key", ""]].concat()).await.failed(4, "CURVE");
    // An error about two mechanisms names both sources.
    let both = user.run(&["ping", "--user", "me"]).await;
    both.failed(2, "line 7) means CURVE and --user means PLAIN");
    within("the end", proxy.stop(std::time::Duration::from_secs(5))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_told_with_its_line_to_those_who_need_it() {
    let user = User::new();
    for (text, line) in [("selected = \"lab\"\n[contexts.lab\n", 2), ("\n[contexts.lab]\nproxi = \"a\"\n", 3)]
    {
        user.write(text);
        let place = format!("{}, line {line}: ", user.file);
        for arguments in [
            &["ping"][..],
            &["registrar", "list"],
            &["connections"],
            &["context", "list"],
            &["pub", "a", "b"],
        ] {
            user.run(arguments).await.failed(2, &place);
        }
        for arguments in [&["keygen"][..], &["completions", "bash"], &["--help"], &["help", "connection"]] {
            user.run(arguments).await.done();
        }
        // A command without a context does not read the file.
        let nobody = ["--context", "", "ping", "--proxy", "127.0.0.1:1"];
        user.run(&nobody).await.failed(3, "127.0.0.1:1");
        assert_eq!(std::fs::read_to_string(&user.file).unwrap(), text);
    }
    // The error about an invalid value names its position, too.
    user.write("[contexts.lab]\nproxy = \"a:70000\"\n");
    let place = format!("for `proxy` of the context lab ({}, line 2): ", user.file);
    user.run(&["ping", "--context", "lab"]).await.failed(2, &place);
    let variable = user.run_with(&[("XMSG_REGISTRAR", "a b")], &["registrar", "list"]).await;
    variable.failed(2, "invalid value 'a b' for XMSG_REGISTRAR in the environment: ");
}

/// An error about a value names its source: the option, the variable, or the context with its line.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_the_source_of_its_value() {
    let user = User::new();
    let (missing, server_key) = (user.path("missing"), "a".repeat(40));
    // The key of a setting, a value that can't be used, the command, the exit code, and the error.
    let rows: [(&str, &str, &[&str], i32, &str); 8] = [
        ("proxy", "a:70000", &["ping"], 2, "invalid value 'a:70000' for {source}: "),
        ("registrar", "a b", &["registrar", "list"], 2, "invalid value 'a b' for {source}: "),
        ("server-key", "abc", &["ping"], 2, "{source}: "),
        ("key-file", &missing, &["ping", "--server-key", &server_key], 1, "{source}: "),
        ("user", "me", &["ping"], 2, "{source} is given without --password-file"),
        ("password-file", &missing, &["ping", "--user", "me"], 1, "{source}: "),
        ("admin", "a:70000", &["connections"], 2, "invalid value 'a:70000' for {source}: "),
        ("admin-token-file", &missing, &["connections"], 1, "{source}: "),
    ];
    for (key, value, command, code, error) in rows {
        let (option, variable) =
            (format!("--{key}"), format!("XMSG_{}", key.to_uppercase().replace('-', "_")));
        user.write(&format!("[contexts.bad]\n{key} = \"{value}\"\n"));
        let with_option = [command, &[option.as_str(), value]].concat();
        for (source, variables, arguments) in [
            (option.clone(), vec![], &with_option[..]),
            (format!("{variable} in the environment"), vec![(variable.as_str(), value)], command),
            (
                format!("`{key}` of the context bad ({}, line 2)", user.file),
                vec![("XMSG_CONTEXT", "bad")],
                command,
            ),
        ] {
            let ended = user.run_with(&variables, arguments).await;
            ended.failed(code, &error.replace("{source}", &source));
        }
    }
    // There are no other settings.
    user.write("[contexts.bad]\nnone = \"\"\n");
    let keys = rows.map(|(key, ..)| key).join(", ");
    let ended = user.run(&["ping"]).await;
    assert!(ended.stderr.contains(&format!("a context has no `none`, but {keys}\n")), "{}", ended.stderr);
}

/// Without `XMSG_CONFIG`, the file is in the configuration folder of the user.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_in_the_folder_for_configuration() {
    let home = tempfile::tempdir().unwrap();
    let (home, below) = (home.path().display().to_string(), home.path().join("other").display().to_string());
    for (variables, path) in [
        (
            [("XMSG_CONFIG", ""), ("HOME", &*home), ("XDG_CONFIG_HOME", "")],
            format!("{home}/.config/xmsg/contexts.toml"),
        ),
        (
            [("XMSG_CONFIG", ""), ("HOME", &*home), ("XDG_CONFIG_HOME", &*below)],
            format!("{below}/xmsg/contexts.toml"),
        ),
    ] {
        let added = Running::start_with(&variables, &["context", "add", "lab", "--proxy", "a"]).end().await;
        assert!(added.stderr.contains(&path), "{}", added.stderr);
        assert!(std::fs::read_to_string(&path).unwrap().contains("[contexts.lab]"));
    }
}
