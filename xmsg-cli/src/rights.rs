//! Our rights at a proxy. A proxy drops messages that we may not publish, and never confirms subscriptions
//! that we may not make.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::control::{Right, RightsRequest};
use xmsg_core::{Error, ErrorKind, Result, Security, Topic};

use crate::args::{ConnectOptions, SecurityOptions};
use crate::control::ControlSockets;
use crate::render::topic_text;

/// How often the question is repeated while there is no answer.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// The largest number of topics that are checked, to explain one error or before a command starts.
const CHECKED_MAX: usize = 64;

/// Fails if we may not publish to this topic. If the proxy does not answer, because it is of another
/// implementation, publishing counts as allowed. Without security, the proxy is not asked.
pub(crate) async fn may_publish(connect: &ConnectOptions, topic: &Topic) -> anyhow::Result<()> {
    check(connect, Right::Publish, topic).await
}

/// Fails if we may not do this with this topic; see [`may_publish`].
pub(crate) async fn check(connect: &ConnectOptions, right: Right, topic: &Topic) -> anyhow::Result<()> {
    if !are_given()? {
        return Ok(());
    }
    match may(connect, right, topic).await? {
        Some(false) => Err(denied(connect, right, topic)?.into()),
        _ => Ok(()),
    }
}

/// Fails if we may not publish to one of these topics; see [`may_publish`].
///
/// A right holds for all topics with a common prefix. So the common prefix of the topics is checked first,
/// and longer prefixes only if it is not allowed. If that needs too many questions, the rest counts as
/// allowed.
pub(crate) async fn may_publish_all(
    connect: &ConnectOptions,
    topics: &BTreeSet<Bytes>,
) -> anyhow::Result<()> {
    let topics: Vec<&Bytes> = topics.iter().collect();
    let mut groups = vec![&topics[..]];
    let mut checked = 0;
    while let Some(group) = groups.pop()
        && checked < CHECKED_MAX
        && let [first, .., last] | [first @ last] = group
    {
        checked += 1;
        // The topics are sorted, so the common prefix of the first and the last one is common to all.
        let common = first.iter().zip(last.iter()).take_while(|(one, other)| one == other).count();
        let topic = Topic::wrap(first.slice(..common));
        match may(connect, Right::Publish, &topic).await? {
            Some(true) => {}
            None => break,
            Some(false) if common == first.len() => {
                return Err(denied(connect, Right::Publish, &topic)?.into());
            }
            // The groups are pushed in reverse, so that the first one is checked first.
            Some(false) => groups.extend(group.chunk_by(|one, other| one[common] == other[common]).rev()),
        }
    }
    Ok(())
}

/// Returns whether a proxy may give different rights to its clients. Without security, it cannot tell them
/// apart.
pub(crate) fn are_given() -> Result<bool> {
    Ok(!matches!(SecurityOptions::security()?, Security::Null))
}

/// Replaces the error of a subscription that was not confirmed, if the reason is that we may not subscribe.
pub(crate) async fn explained(connect: &ConnectOptions, topics: &[Topic], error: Error) -> Error {
    if error.kind() == ErrorKind::Timeout {
        for topic in topics.iter().take(CHECKED_MAX) {
            match may(connect, Right::Subscribe, topic).await {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return denied(connect, Right::Subscribe, topic).unwrap_or(error),
                // The proxy does not answer such questions.
                _ => break,
            }
        }
    }
    error
}

fn denied(connect: &ConnectOptions, right: Right, topic: &Topic) -> Result<Error> {
    let verb = match right {
        Right::Publish => "publish",
        Right::Subscribe => "subscribe",
    };
    let topic =
        if topic.as_bytes().is_empty() { "everything".to_owned() } else { topic_text(topic).into_owned() };
    let what = format!(
        "not allowed to {verb} to {topic}: the proxy at {} gives us no right to; its operator adds it to `{verb}` of our \
         [[security.client]]",
        connect.proxy()?
    );
    Ok(Error::new(ErrorKind::NotAllowed, what))
}

/// Asks the proxy whether we may do this; `None` if it does not answer.
async fn may(connect: &ConnectOptions, right: Right, topic: &Topic) -> Result<Option<bool>> {
    let mut control = ControlSockets::connect(connect)?;
    let question = RightsRequest { id: control.id, right, topic: topic.clone() };
    let asking = async {
        control.connected().await?;
        control.ask(&question.message(), ASK_INTERVAL, |answer| RightsRequest::is_allowed_by(&answer)).await
    };
    let answer = tokio::time::timeout(connect.timeout(), asking).await;
    control.publisher.close(Duration::ZERO).await;
    Ok(answer.ok().and_then(Result::ok))
}
