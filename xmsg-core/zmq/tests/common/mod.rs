//! What tests of sockets wait for, and where they meet.

use std::time::Duration;

use xmsg_zmq::Endpoint;

/// No event takes longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What comes in time.
pub(crate) async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.unwrap_or_else(|_| panic!("{what}: nothing in time"))
}

/// Waits until this is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    within(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A free port of the loopback.
pub(crate) fn anywhere() -> Endpoint {
    "tcp://127.0.0.1:0".parse().unwrap()
}
