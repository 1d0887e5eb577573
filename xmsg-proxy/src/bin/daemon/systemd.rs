//! The service manager. It is notified of the state, and may pass sockets that listen already. Without a
//! service manager, nothing here has an effect.

use std::net::TcpListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::task::JoinHandle;
use xmsg_proxy::settings::SettingsError;

/// Sockets that were passed, by name (`FileDescriptorName=`).
#[derive(Debug, Default)]
pub(crate) struct Sockets(Vec<(String, TcpListener)>);

impl Sockets {
    /// Takes the sockets from the environment. `known` says how many there may be of each name.
    pub(crate) fn from_environment(known: &[(&str, usize)]) -> Result<Self, SettingsError> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut found = ListenFd::from_env();
        let mut names = names.split(':');
        let mut sockets = Vec::new();
        for at in 0..found.len() {
            let name = names.next().unwrap_or_default();
            if !known.iter().any(|(known, _)| *known == name) {
                let known: Vec<_> = known.iter().map(|(name, count)| format!("{name} ({count})")).collect();
                return Err(SettingsError::new(format!(
                    "a socket named {name:?} was handed over; there are {}: set FileDescriptorName= in its unit",
                    known.join(", ")
                )));
            }
            match found.take_tcp_listener(at) {
                Ok(Some(socket)) => sockets.push((name.to_owned(), socket)),
                Ok(None) => {}
                Err(error) => {
                    return Err(SettingsError::new(format!("the socket {name:?} can't be used: {error}")));
                }
            }
        }
        for (name, count) in known {
            let passed = sockets.iter().filter(|(found, _)| found == name).count();
            if passed != 0 && passed != *count {
                return Err(SettingsError::new(format!(
                    "{passed} sockets named {name:?} were handed over, and {count} are needed: one ListenStream= for each"
                )));
            }
        }
        Ok(Self(sockets))
    }

    /// Returns whether there are any of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, _)| found == name)
    }

    /// Takes the sockets of this name: none, or as many as `known` says.
    pub(crate) fn take(&mut self, name: &str) -> Vec<TcpListener> {
        let (taken, rest) = std::mem::take(&mut self.0).into_iter().partition(|(found, _)| found == name);
        self.0 = rest;
        let taken: Vec<(String, TcpListener)> = taken;
        taken.into_iter().map(|(_, socket)| socket).collect()
    }
}

/// Notifies the service manager that the daemon is ready. The returned value keeps notifying it, if it has a
/// watchdog.
pub(crate) fn ready(status: &str) -> Watchdog {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    Watchdog(sd_notify::watchdog_enabled().map(|limit| tokio::spawn(ping(limit / 2))))
}

/// Notifies the service manager that the settings are being read again. The time says to which request this
/// belongs.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic time"),
    }
}

/// Notifies the service manager that the settings are read.
pub(crate) fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// Notifies the service manager that the daemon stops.
pub(crate) fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// Notifies the watchdog of the service manager, as long as the runtime that moves messages makes progress,
/// until this is dropped.
#[derive(Debug)]
pub(crate) struct Watchdog(Option<JoinHandle<()>>);

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

async fn ping(interval: Duration) {
    let mut turns = tokio::time::interval(interval.max(Duration::from_millis(1)));
    loop {
        turns.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}
