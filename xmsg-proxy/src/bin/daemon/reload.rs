//! SIGHUP: changes of the settings file are applied, and those that need a restart are reported.

use std::sync::{Arc, Mutex};

use xmsg_proxy::admin::{Pending, PendingChanges};
use xmsg_proxy::settings::{self, Change, Reloadable, SettingsError};

use super::{Daemon, Program, load, systemd};
use xmsg_zmq::lock::lock;

/// The settings in force, shared with the HTTP server, which reports what a reload would change.
pub(super) struct SettingsInForce<P: Program>(Arc<Mutex<(P::Settings, Reloadable)>>);

impl<P: Program> SettingsInForce<P> {
    pub(super) fn new(settings: &P::Settings, reloadable: &Reloadable) -> Self {
        Self(Arc::new(Mutex::new((settings.clone(), reloadable.clone()))))
    }

    fn set(&self, settings: &P::Settings, reloadable: &Reloadable) {
        let mut in_force = lock(&self.0);
        *in_force = (settings.clone(), reloadable.clone());
    }
}

impl<P: Program> Daemon<P> {
    /// Returns what [`reload`](Self::reload) would change now. It is determined in the same way.
    pub(super) fn pending(&self) -> Pending {
        let (program, in_force) = (self.program.clone(), self.in_force.0.clone());
        let program = Mutex::new(program);
        Pending::new(move || {
            let program = lock(&program).clone();
            let (new, reloadable) = load(&program)?;
            let (settings, before) = lock(&in_force).clone();
            let (_, changes) = settings::merge(&settings, &new)?;
            let contents = contents(&before, &reloadable, &changes);
            let has_file = program.common().config.is_some();
            Ok(PendingChanges { has_file, changes, contents })
        })
    }

    /// Reads the settings again. If they are not valid, nothing changes. Dropping the future cancels the
    /// reload as long as files are being read.
    pub(crate) async fn reload(&mut self) {
        systemd::reloading();
        if self.program.common().config.is_none() {
            tracing::info!("SIGHUP: there is no configuration file (--config) to read again");
        }
        let program = self.program.clone();
        // Files may be slow, and messages must not wait for them.
        let loaded = tokio::task::spawn_blocking(move || load(&program)).await;
        let loaded = loaded.unwrap_or_else(|error| Err(SettingsError::new(error.to_string())));
        match loaded.and_then(|(new, reloadable)| {
            settings::merge(&self.settings, &new).map(|(merged, changes)| (merged, changes, reloadable))
        }) {
            Ok((merged, changes, reloadable)) => {
                self.apply(reloadable);
                self.settings = merged;
                if let Some(admin) = &self.admin {
                    admin.set_config(self.config());
                }
                self.in_force.set(&self.settings, &self.reloadable);
                // This comes last: a program that reads it in the log may send a request at once.
                report(&changes);
            }
            Err(error) => {
                tracing::error!("configuration not reloaded, the former one stays in force: {error}");
            }
        }
        systemd::reloaded();
    }

    /// Applies the differences. A part that can be reloaded has its lines here, its field in [`Reloadable`],
    /// and its keys in `Settings::RELOADABLE`.
    fn apply(&mut self, new: Reloadable) {
        let Reloadable {
            log_filter,
            linger,
            admin_token,
            admin_viewer_token,
            viewer_may_watch,
            mechanism,
            rules,
            upstreams,
        } = new;
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
        // Under another mechanism, the rules would have another meaning, or none.
        if has_same_rules && rules != self.reloadable.rules {
            self.authority.replace(rules.clone());
            self.reloadable.rules = rules;
            tracing::info!("the rights of clients have changed");
        }
        if log_filter != self.reloadable.log_filter {
            self.log.set(&log_filter);
            self.reloadable.log_filter = log_filter;
        }
        // The owner of the proxy compares them.
        self.reloadable.upstreams = upstreams;
        // It counts from when the daemon is asked to stop.
        self.reloadable.linger = linger;
        let Reloadable { admin_token: operator, admin_viewer_token: viewer, .. } = &self.reloadable;
        let now = (admin_token, admin_viewer_token, viewer_may_watch);
        if now != (operator.clone(), viewer.clone(), self.reloadable.viewer_may_watch) {
            let tokens = self.tokens(now.0.clone(), now.1.clone(), viewer_may_watch);
            match self.admin.as_ref().map_or(Ok(()), |admin| admin.set_tokens(tokens)) {
                Ok(()) => {
                    let has_token = now.0.is_some();
                    tracing::info!(
                        has_token,
                        "the tokens of the HTTP server, or what they are for, have changed"
                    );
                    (self.reloadable.admin_token, self.reloadable.admin_viewer_token) = (now.0, now.1);
                    self.reloadable.viewer_may_watch = viewer_may_watch;
                }
                Err(error) => tracing::error!("the former token of the HTTP server stays in force: {error}"),
            }
        }
    }
}

/// Adds the files whose content has changed although their names have not: the setting that names them, and
/// whether a reload applies them. The content is secret.
fn contents(before: &Reloadable, now: &Reloadable, changes: &[Change]) -> Vec<(&'static str, bool)> {
    let has_same_rules = now.mechanism.has_rules_of(&before.mechanism);
    let parts = [
        ("admin.token_file", now.admin_token != before.admin_token, true),
        ("admin.viewer_token_file", now.admin_viewer_token != before.admin_viewer_token, true),
        ("security.password_file", has_same_rules && now.rules != before.rules, true),
        ("security.key_file", now.mechanism != before.mechanism, false),
        ("upstream", now.upstreams != before.upstreams, true),
    ];
    // A setting that has changed itself is reported already.
    let is_reported = |setting: &str| {
        let section = setting.split_once('.').filter(|(section, _)| *section == "security");
        changes.iter().any(|change| {
            change.key == setting
                || section.is_some_and(|(section, _)| change.key.starts_with(&format!("{section}.")))
        })
    };
    let differing = parts.into_iter().filter(|(setting, differs, _)| *differs && !is_reported(setting));
    differing.map(|(setting, _, is_reloadable)| (setting, is_reloadable)).collect()
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
