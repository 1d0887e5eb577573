//! SIGHUP: what can be changed is taken over from the file, what needs a restart is named.

use xmsg_proxy::settings::{self, Change, Reloadable, SettingsError};

use super::{Daemon, Program, load, systemd};

impl<P: Program> Daemon<P> {
    /// Reads the settings again. If they are no good, everything stays as it is. Dropping the future gives it
    /// up as long as files are being read.
    pub(crate) async fn reload(&mut self) {
        systemd::reloading();
        if self.program.common().config.is_none() {
            tracing::info!("SIGHUP: there is no configuration file (--config) to read again");
        }
        let program = self.program.clone();
        // Files may be slow, and messages are not to wait.
        let loaded = tokio::task::spawn_blocking(move || load(&program)).await;
        let loaded = loaded.unwrap_or_else(|error| Err(SettingsError::new(error.to_string())));
        match loaded.and_then(|(new, reloadable)| {
            settings::merge(&self.settings, &new).map(|(merged, changes)| (merged, changes, reloadable))
        }) {
            Ok((merged, changes, reloadable)) => {
                self.take_over(reloadable);
                self.settings = merged;
                if let Some(admin) = &self.admin {
                    admin.set_config(self.config());
                }
                // Last: whoever reads it in the log may ask at once.
                report(&changes);
            }
            Err(error) => {
                tracing::error!("configuration not reloaded, the former one stays in force: {error}");
            }
        }
        systemd::reloaded();
    }

    /// Changes what differs. A part that can be reloaded has its lines here, its field in [`Reloadable`], and
    /// its keys in `Settings::RELOADABLE`.
    fn take_over(&mut self, new: Reloadable) {
        let Reloadable { log_filter, linger, admin_token, admin_viewer_token, mechanism, rules, upstreams } =
            new;
        let in_force = &self.reloadable.mechanism;
        let has_same_rules = mechanism.has_rules_of(in_force);
        if !has_same_rules {
            tracing::warn!(
                in_force = in_force.name(),
                in_file = mechanism.name(),
                "the file has another security mechanism: until a restart, mechanism, clients, rights and passwords stay as they were"
            );
        } else if mechanism != *in_force {
            tracing::warn!("our keys have changed: that needs a restart");
        }
        // Under another mechanism they would say something else, or nothing.
        if has_same_rules && rules != self.reloadable.rules {
            self.authority.replace(rules.clone());
            self.reloadable.rules = rules;
            tracing::info!("the rights of clients have changed");
        }
        if log_filter != self.reloadable.log_filter {
            self.log.set(&log_filter);
            self.reloadable.log_filter = log_filter;
        }
        // Whoever has the proxy compares them.
        self.reloadable.upstreams = upstreams;
        // It counts from when the daemon is told to stop.
        self.reloadable.linger = linger;
        let now = (admin_token, admin_viewer_token);
        if now != (self.reloadable.admin_token.clone(), self.reloadable.admin_viewer_token.clone()) {
            let tokens = self.tokens(now.0.clone(), now.1.clone());
            match self.admin.as_ref().map_or(Ok(()), |admin| admin.set_tokens(tokens)) {
                Ok(()) => {
                    let has_token = now.0.is_some();
                    tracing::info!(has_token, "the token of the HTTP server has changed");
                    (self.reloadable.admin_token, self.reloadable.admin_viewer_token) = now;
                }
                Err(error) => tracing::error!("the former token of the HTTP server stays in force: {error}"),
            }
        }
    }
}

fn report(changes: &[Change]) {
    for Change { key, old, new, is_reloadable } in changes {
        if *is_reloadable {
            tracing::info!(setting = key, old, new, "taken over");
        } else {
            tracing::warn!(setting = key, old, new, "needs a restart; until then it stays as it was");
        }
    }
    let taken_over = changes.iter().filter(|change| change.is_reloadable).count();
    tracing::info!(taken_over, needs_restart = changes.len() - taken_over, "configuration reloaded");
}
