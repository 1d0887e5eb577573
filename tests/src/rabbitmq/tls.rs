//! Brokers that are spoken to with TLS, with certificates of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::Broker;
use super::site::{Site, free_ports, write};

/// What the certificates are made of: that of a signer, and one for the host `localhost` and no other.
const CERTIFICATES: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
CN = tests
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:localhost
";

impl Broker {
    /// Starts one that also listens with TLS, at [`tls_port`](Self::tls_port), with a certificate for
    /// `localhost`.
    pub async fn with_tls() -> Self {
        let site = Arc::new(Site::new(&[]).await);
        let [port] = free_ports();
        let (ca, folder) = (site.path("ca.pem"), site.path("tls"));
        std::fs::create_dir(&folder).expect("the folder is new");
        make_certificate(&folder, "ca", None);
        std::fs::copy(folder.join("ca.pem"), &ca).expect("it was made");
        make_certificate(&folder, "server", Some("ca"));
        let file = |name: &str| folder.join(name).display().to_string();
        let tls = format!(
            ", {{ssl_listeners, [{{\"127.0.0.1\", {port}}}]}},
               {{ssl_options, [{{cacertfile, {:?}}}, {{certfile, {:?}}}, {{keyfile, {:?}}}]}}",
            file("ca.pem"),
            file("server.pem"),
            file("server.key")
        );
        let mut broker = Self::new_with(site, "n1", &["n1"], &tls);
        broker.ports.tls = port;
        broker.start_again().await;
        broker
    }

    /// The port of the loopback that clients connect to with TLS.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.ports.tls
    }

    /// The certificate of who has signed that of the broker.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.site.path("ca.pem")
    }
}

/// Makes a key and a certificate, signed by itself, or by the one of this name.
pub(super) fn make_certificate(folder: &Path, name: &str, signer: Option<&str>) {
    let path = |name: &str, kind: &str| folder.join(format!("{name}.{kind}"));
    write(&folder.join("openssl.cnf"), CERTIFICATES);
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "req",
            "-x509",
            "-nodes",
            "-days",
            "2",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .arg("-config")
        .arg(folder.join("openssl.cnf"))
        .args(["-extensions", name])
        .arg("-keyout")
        .arg(path(name, "key"))
        .arg("-out")
        .arg(path(name, "pem"));
    if let Some(signer) = signer {
        openssl.arg("-CA").arg(path(signer, "pem")).arg("-CAkey").arg(path(signer, "key"));
    }
    let output = openssl.output().unwrap_or_else(|error| panic!("openssl: {error}"));
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}

/// A certificate of somebody who has signed nothing, in this file.
pub fn make_stranger(file: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    make_certificate(folder.path(), "ca", None);
    std::fs::copy(folder.path().join("ca.pem"), file).expect("it was made");
}
