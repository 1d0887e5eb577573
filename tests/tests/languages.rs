//! Programs in other languages, and pipelines of shells, run exactly as the documents show them.

use std::path::Path;

use xmsg_tests::document::{blocks, run, section, three_spare_ports, until, write_programs};
use xmsg_tests::peer::python;
use xmsg_tests::proxy;

/// Returns a shell command with which `python3` is the Python that has pyzmq.
fn with_python() -> String {
    let python = python();
    let folder = python.parent().expect("a file is in a folder");
    format!("export PATH='{}':\"$PATH\"\n", folder.display())
}

/// Runs each of these blocks with a proxy of its own, which has no subscription from the one before.
async fn run_openly(blocks: &[String], before: &str, folder: &Path) {
    for block in blocks {
        let proxy = proxy().start().await.unwrap();
        let address = proxy.address().to_string();
        run(&format!("{before}{block}"), folder, &[("XMSG_PROXY", &address)]).await;
    }
}

/// Runs the blocks of the section about CURVE: the first one starts the proxy. Then it runs a command
/// without the keys, which must fail.
async fn run_with_keys(document: &str, before: &str, stranger: &str, folder: &Path) {
    let [server, client] = &section(document, "With CURVE")[..] else { panic!("another number of blocks") };
    let port = three_spare_ports().to_string();
    let address = format!("127.0.0.1:{port}");
    let answers =
        until("xmsg ping -n 1 --server-key \"$(cat proxy.public)\" --key-file me.key > pinged 2>&1");
    let script = format!("{before}{server}\n{answers}{client}\n{stranger}");
    run(&script, folder, &[("XMSG_PROXY_PORT", &port), ("XMSG_PROXY", &address)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_in_python_run_as_the_document_shows_them() {
    let document = include_str!("../../docs/python.md");
    let folder = tempfile::tempdir().unwrap();
    let programs = write_programs(document, "python", folder.path());
    assert_eq!(programs, ["xmsg_zmq.py", "publish.py", "subscribe.py"]);
    let found = section(document, "Run them");
    assert_eq!(found.len(), 3);
    run_openly(&found, &with_python(), folder.path()).await;
    let refused = "! XMSG_SERVER_KEY= python3 publish.py 2> refused\ngrep -q PermissionError refused";
    run_with_keys(document, &with_python(), refused, folder.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_in_c_run_as_the_document_shows_them() {
    let document = include_str!("../../docs/c.md");
    let folder = tempfile::tempdir().unwrap();
    let programs = write_programs(document, "c", folder.path());
    assert_eq!(programs, ["xmsg_zmq.h", "publish.c", "subscribe.c"]);
    // A warning is an error here, so that users see none.
    let strictly = "cc() { command cc -Werror \"$@\"; }\n";
    let found = section(document, "Compile and run them");
    assert_eq!(found.len(), 4);
    run_openly(&found, strictly, folder.path()).await;
    let refused = "! XMSG_SERVER_KEY= ./publish 2> refused\ngrep -q 'refuses us: are the keys right' refused";
    run_with_keys(document, "", refused, folder.path()).await;
}

/// Each block of the page stands alone, in a folder of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_run_as_the_document_shows_them() {
    let document = include_str!("../../docs/shell.md");
    let with_keys = section(document, "With CURVE");
    let found: Vec<_> = blocks(document).into_iter().filter(|block| !with_keys.contains(block)).collect();
    assert!(found.len() >= 8, "{} blocks", found.len());
    for block in found {
        let folder = tempfile::tempdir().unwrap();
        run_openly(&[block], "", folder.path()).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let refused = "code=0\nXMSG_SERVER_KEY= XMSG_KEY_FILE= xmsg ping -n 1 || code=$?\ntest $code -eq 4";
    run_with_keys(document, "", refused, folder.path()).await;
}
