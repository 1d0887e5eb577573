//! Channels: from a peer to a topic of xMsg, or to an outgoing connection.

mod amqp;
mod target;
mod zmq;

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::definition::{ChannelDefinition, ConnectionDefinition, Definitions, Origin, Reconnect};
use crate::error::Result;
use crate::status::Status;
use crate::supervise::{Plan, supervise};

pub(crate) use target::Targets;

/// What the session of a channel goes by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChannelPlan {
    pub(crate) definition: ChannelDefinition,
    pub(crate) origin: Origin,
    /// The broker, if it comes from one.
    pub(crate) broker: Option<ConnectionDefinition>,
}

impl ChannelPlan {
    /// The plan for one of these definitions.
    pub(crate) fn of(definition: &ChannelDefinition, all: &Definitions) -> Result<Self> {
        let origin = definition.check(all)?;
        let broker = all.broker(definition.connection.as_ref()).cloned();
        Ok(Self { definition: definition.clone(), origin, broker })
    }

    fn as_work(&self) -> Plan<Self> {
        if self.definition.is_active { Plan::Work(self.clone()) } else { Plan::Rest }
    }

    fn reconnect(&self) -> Reconnect {
        self.broker.as_ref().map_or_else(Reconnect::default, |broker| broker.reconnect)
    }
}

/// A channel at work. Its task ends when it is dropped, or [ended](Self::end).
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) status: Arc<Status>,
    plan: RwLock<Arc<ChannelPlan>>,
    plans: watch::Sender<Plan<ChannelPlan>>,
    tasks: TaskTracker,
}

impl Channel {
    /// Starts the task of this one.
    pub(crate) fn start(plan: ChannelPlan, targets: Targets) -> Self {
        let status = Arc::new(Status::new(label(&plan.definition.name)));
        let (plans, session_plans) = watch::channel(plan.as_work());
        let tasks = TaskTracker::new();
        let shared = status.clone();
        tasks.spawn(async move {
            let session = |plan: ChannelPlan, attempt, stop| {
                let (status, targets) = (shared.clone(), targets.clone());
                async move {
                    match &plan.origin {
                        Origin::Amqp(amqp) => {
                            amqp::session(&status, &targets, &plan, amqp, attempt, stop).await
                        }
                        Origin::Zmq(zmq) => zmq::session(&status, &targets, &plan, zmq, stop).await,
                    }
                }
            };
            supervise(&shared, session_plans, ChannelPlan::reconnect, session).await;
        });
        tasks.close();
        Self { status, plan: RwLock::new(Arc::new(plan)), plans, tasks }
    }

    pub(crate) fn plan(&self) -> Arc<ChannelPlan> {
        self.plan.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes by this plan from now on; the link is made anew if it differs.
    pub(crate) fn change(&self, plan: ChannelPlan) {
        self.status.rename(label(&plan.definition.name));
        let new = plan.as_work();
        self.plans.send_if_modified(|current| {
            let differs = *current != new;
            *current = new;
            differs
        });
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(plan);
    }

    /// Ends the task, and waits for it: what has come has half a second to get to its target.
    pub(crate) async fn end(self) {
        let Self { plans, tasks, .. } = self;
        drop(plans);
        tasks.wait().await;
    }
}

fn label(name: &str) -> String {
    format!("channel {name:?}")
}
