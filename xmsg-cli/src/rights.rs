//! What we may do, as a proxy says: it drops what we may not publish, and never confirms what we may not subscribe to.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::control::{Right, RightsQuestion};
use xmsg_core::{Error, ErrorKind, Result, Security, Topic};

use crate::args::{ConnectOptions, SecurityOptions};
use crate::control::ControlSockets;
use crate::render::topic_text;

/// How often the question is repeated while there is no answer.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// Topics that are asked after to explain one error, or before something is begun.
const ASKED_MAX: usize = 64;

/// Fails if we may not publish to this topic. A proxy that does not answer, as those of others, is given the benefit of the doubt; without
/// security, there is nothing to ask.
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

/// Fails if there is one among these topics to which we may not publish; see [`may_publish`]. A right is one for all topics that begin
/// alike: so what topics have in common is asked after first, and more than that only of those for which it is not allowed. When that
/// takes too many questions, the rest is given the benefit of the doubt.
pub(crate) async fn may_publish_all(
    connect: &ConnectOptions,
    topics: &BTreeSet<Bytes>,
) -> anyhow::Result<()> {
    let topics: Vec<&Bytes> = topics.iter().collect();
    let mut groups = vec![&topics[..]];
    let mut asked = 0;
    while let Some(group) = groups.pop()
        && asked < ASKED_MAX
        && let [first, .., last] | [first @ last] = group
    {
        asked += 1;
        // They are in order, so what the first and the last have in common all of them have.
        let common = first.iter().zip(last.iter()).take_while(|(one, other)| one == other).count();
        let topic = Topic::wrap(first.slice(..common));
        match may(connect, Right::Publish, &topic).await? {
            Some(true) => {}
            None => break,
            Some(false) if common == first.len() => {
                return Err(denied(connect, Right::Publish, &topic)?.into());
            }
            // The first one comes first.
            Some(false) => groups.extend(group.chunk_by(|one, other| one[common] == other[common]).rev()),
        }
    }
    Ok(())
}

/// Whether a proxy may give rights to some and not to others: without security, there is nobody that it could tell from others.
pub(crate) fn are_given() -> Result<bool> {
    Ok(!matches!(SecurityOptions::security()?, Security::Null))
}

/// The error of a subscription that was not confirmed; if that is because we may not, it says so.
pub(crate) async fn explained(connect: &ConnectOptions, topics: &[Topic], error: Error) -> Error {
    if error.kind() == ErrorKind::Timeout {
        for topic in topics.iter().take(ASKED_MAX) {
            match may(connect, Right::Subscribe, topic).await {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return denied(connect, Right::Subscribe, topic).unwrap_or(error),
                // It answers no such questions.
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

/// Whether we may do this; `None`: the proxy did not say.
async fn may(connect: &ConnectOptions, right: Right, topic: &Topic) -> Result<Option<bool>> {
    let mut control = ControlSockets::connect(connect)?;
    let question = RightsQuestion { id: control.id, right, topic: topic.clone() };
    let asking = async {
        control.connected().await?;
        control.ask(&question.message(), ASK_INTERVAL, |answer| RightsQuestion::is_allowed_by(&answer)).await
    };
    let answer = tokio::time::timeout(connect.timeout(), asking).await;
    control.publisher.close(Duration::ZERO).await;
    Ok(answer.ok().and_then(Result::ok))
}
