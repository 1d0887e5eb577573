//! The parts that the ZeroMQ sockets of outgoing connections and of channels have in common.

use std::sync::Arc;

use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::security::{AllowKeys, Authenticator, Verdict, authenticate_with, read_key_file};
use xmsg_zmq::{Endpoint, Security, SocketOptions};
use xmsg_zmtp::curve::{KeyPair, PublicKey};

use crate::definition::{Curve, SocketMethod, ZmqFields};
use crate::error::{Error, ErrorKind, Result};

/// Returns the options of a socket with these fields. What its peers send, and what waits for them, counts in
/// `memory`.
pub(crate) fn options<S>(fields: &ZmqFields, memory: &MemoryBudget) -> Result<SocketOptions<S>> {
    let options = SocketOptions::default().memory(memory.clone());
    Ok(match &fields.curve {
        None => options,
        Some(curve) => options.security(security(curve, fields.method)?),
    })
}

fn security(curve: &Curve, method: SocketMethod) -> Result<Security> {
    let failed = |error: xmsg_zmq::Error| {
        Error::new(ErrorKind::InvalidDefinition, "curve can't be used").with_source(error)
    };
    let keys = match &curve.key_file {
        Some(file) => read_key_file(file).map_err(failed)?,
        None => KeyPair::generate().map_err(|error| failed(error.into()))?,
    };
    let key = |text: &String| text.parse::<PublicKey>().map_err(|error| failed(error.into()));
    if let (SocketMethod::Connect, Some(server)) = (method, &curve.server_key) {
        return Ok(Security::CurveClient { keys, server: key(server)? });
    }
    let allowed = curve.client_keys.iter().map(key).collect::<Result<Vec<_>>>()?;
    let authenticator: Arc<dyn Authenticator> = if allowed.is_empty() {
        authenticate_with(|_, _| async { Verdict::from(true) })
    } else {
        Arc::new(AllowKeys::new(allowed))
    };
    Ok(Security::CurveServer { keys, authenticator })
}

/// Connects or binds a socket, whichever type it has.
macro_rules! connect_or_bind {
    ($socket:expr, $fields:expr) => {
        match $fields.method {
            crate::definition::SocketMethod::Connect => {
                $socket.connect($fields.endpoint.clone());
                Ok(())
            }
            crate::definition::SocketMethod::Bind => {
                let bound = $socket.bind(&$fields.endpoint).await;
                bound.map(drop).map_err(|error| crate::zmq::bind_error(&$fields.endpoint, error))
            }
        }
    };
}
pub(crate) use connect_or_bind;

pub(crate) fn bind_error(endpoint: &Endpoint, error: xmsg_zmq::Error) -> Error {
    Error::new(ErrorKind::Refused, format!("{endpoint} can't be bound to (address)")).with_source(error)
}

/// Says why no peer is connected, for the log and for people.
pub(crate) fn no_peer_reason(fields: &ZmqFields, failure: Option<&xmsg_zmq::Error>) -> String {
    match (fields.method, failure) {
        (_, Some(failure)) => failure.with_causes().to_string(),
        (SocketMethod::Connect, None) => format!("{} can't be reached yet", fields.endpoint),
        (SocketMethod::Bind, None) => format!("nobody is connected to {} yet", fields.endpoint),
    }
}
