//! Channels: from a peer to a topic of xMsg, or to an outgoing connection.
//!
//! | file | answers |
//! |---|---|
//! | `amqp.rs` | How does a message get from a queue to the target, and when is it acknowledged? |
//! | `zmq.rs` | How does a message get from a ZeroMQ socket to the target? |
//! | `target.rs` | Where do the messages go: to the proxy, or into a spool? |

mod amqp;
mod target;
mod zmq;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::fault::restart;

use crate::definition::{
    ChannelDefinition, ConnectionDefinition, Definitions, Reconnect, Source, ZmqChannel,
};
use crate::error::Result;
use crate::federation::Federation;
use crate::receive_memory::ReceiveMemory;
use crate::status::{Status, add};
use crate::supervise::{Plan, supervise};

pub(crate) use target::Targets;

/// The configuration of the session of a channel: its definition with all that it refers to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChannelPlan {
    pub(crate) definition: ChannelDefinition,
    pub(crate) source: Source,
    /// The broker, if it comes from one.
    pub(crate) broker: Option<ConnectionDefinition>,
    /// The federation whose messages it brings in.
    pub(crate) federation: Option<Federation>,
}

impl ChannelPlan {
    /// Makes the plan for one of these definitions, whose files are relative to this folder.
    pub(crate) fn of(definition: &ChannelDefinition, all: &Definitions, base: &Path) -> Result<Self> {
        let source = match definition.check(all)? {
            Source::Zmq(zmq) => Source::Zmq(ZmqChannel { socket: zmq.socket.resolved(base), ..zmq }),
            amqp @ Source::Amqp(_) => amqp,
        };
        let broker = all.broker(definition.connection.as_ref()).map(|broker| broker.resolved(base));
        Ok(Self { definition: definition.clone(), source, broker, federation: None })
    }

    fn to_plan(&self) -> Plan<Self> {
        if self.definition.is_active { Plan::Active(self.clone()) } else { Plan::Inactive }
    }

    fn reconnect(&self) -> Reconnect {
        self.broker.as_ref().map_or_else(Reconnect::default, |broker| broker.reconnect)
    }
}

/// How long the messages that a channel has received may take to be delivered when it ends, beside the time
/// of its session.
const LAST_DELIVERY: Duration = Duration::from_secs(5);

/// A channel at work. Its task ends when it is dropped, or [ended](Self::end).
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) status: Arc<Status>,
    plan: RwLock<Arc<ChannelPlan>>,
    plans: watch::Sender<Plan<ChannelPlan>>,
    undelivered: Arc<zmq::Undelivered>,
    targets: Targets,
    tasks: TaskTracker,
}

impl Channel {
    /// Starts the task of this one.
    pub(crate) fn start(plan: ChannelPlan, targets: Targets, receive_memory: ReceiveMemory) -> Self {
        let label = label(&plan.definition.name);
        let status = Arc::new(Status::new(label.clone()));
        let (plans, session_plans) = watch::channel(plan.to_plan());
        let tasks = TaskTracker::new();
        let (shared, own_targets) = (status.clone(), targets.clone());
        let undelivered = Arc::new(zmq::Undelivered::default());
        let shared_undelivered = undelivered.clone();
        tasks.spawn(async move {
            let session = |plan: ChannelPlan, attempt, stop| {
                let (status, targets, undelivered) =
                    (shared.clone(), targets.clone(), shared_undelivered.clone());
                let receive_memory = receive_memory.clone();
                async move {
                    match &plan.source {
                        Source::Amqp(amqp) => {
                            amqp::session(&status, &targets, &plan, amqp, &receive_memory, attempt, stop)
                                .await
                        }
                        Source::Zmq(zmq) => {
                            zmq::session(&status, &targets, &plan, zmq, &undelivered, &receive_memory, stop)
                                .await
                        }
                    }
                }
            };
            let work = || supervise(&shared, session_plans.clone(), ChannelPlan::reconnect, &session);
            restart(&label, work).await;
        });
        tasks.close();
        Self { status, plan: RwLock::new(Arc::new(plan)), plans, undelivered, targets: own_targets, tasks }
    }

    pub(crate) fn plan(&self) -> Arc<ChannelPlan> {
        self.plan.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows this plan from now on. The link is made anew if the plan differs.
    pub(crate) fn change(&self, plan: ChannelPlan) {
        self.status.rename(label(&plan.definition.name));
        let new = plan.to_plan();
        self.plans.send_if_modified(|current| {
            let differs = *current != new;
            *current = new;
            differs
        });
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(plan);
    }

    /// Ends the task, and waits for it. What came from a ZeroMQ socket has [`LAST_DELIVERY`] to get to its
    /// target, since nobody else has it; a broker keeps what was not acknowledged.
    pub(crate) async fn end(self) {
        let Self { status, plan, plans, undelivered, targets, tasks } = self;
        drop(plans);
        tasks.wait().await;
        let plan = plan.into_inner().unwrap_or_else(PoisonError::into_inner);
        let rest = zmq::deliver_rest(&status, &targets, &plan.definition.target, &undelivered);
        let _ = Deadline::after(LAST_DELIVERY).limit(rest).await;
        let lost = undelivered.len();
        if lost > 0 {
            add(&status.counters.dead, lost as u64);
            status.note(format!(
                "{lost} messages that the target did not take in time are lost with this channel"
            ));
        }
    }
}

fn label(name: &str) -> String {
    format!("channel {name:?}")
}
