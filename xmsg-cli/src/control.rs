//! Control requests: a publisher that asks a proxy, and the control socket that its answers come to.

use std::time::Duration;

use bytes::Bytes;
use xmsg_core::control::secret_identity;
use xmsg_core::{ConnectionId, Error, ErrorKind, Result};
use xmsg_zmq::{Dealer, Endpoint, Multipart, Publisher, SocketOptions};

use crate::args::{ConnectOptions, SecurityOptions};

/// Sockets for control requests to one proxy.
#[derive(Debug)]
pub(crate) struct ControlSockets {
    /// Answers to requests with this ID arrive here.
    pub(crate) id: ConnectionId,
    pub(crate) publisher: Publisher,
    answers: Dealer,
    /// Where `answers` connects, and how.
    endpoint: Endpoint,
    options: SocketOptions,
}

impl ControlSockets {
    /// Connects both sockets, without waiting until they are.
    pub(crate) fn connect(connect: &ConnectOptions) -> Result<Self> {
        let proxy = connect.proxy()?;
        let id = ConnectionId::random();
        let options = SecurityOptions::socket_options()?;
        let publisher = Publisher::new(options.for_socket());
        publisher.connect(proxy.publish_endpoint().parse()?);
        let endpoint: Endpoint = proxy.control_endpoint().parse()?;
        let identity = Bytes::copy_from_slice(id.as_bytes());
        let answers = Dealer::connecting_to(endpoint.clone(), options.for_socket().identity(identity));
        Ok(Self { id, publisher, answers, endpoint, options })
    }

    /// Connects the socket for answers anew, with an identity that nobody else knows, and returns it.
    pub(crate) fn take_secret_identity(&mut self) -> Bytes {
        let identity = secret_identity();
        let options = self.options.for_socket().identity(identity.clone());
        self.answers = Dealer::connecting_to(self.endpoint.clone(), options);
        identity
    }

    /// Waits until answers can arrive.
    pub(crate) async fn connected(&self) -> Result<()> {
        self.answers.connected().await
    }

    /// Sends this request, and again after each interval, until `read` finds an answer to it. A request may have come before its answer
    /// could be sent.
    pub(crate) async fn ask<T>(
        &mut self,
        request: &Multipart,
        interval: Duration,
        mut read: impl FnMut(Multipart) -> Option<T>,
    ) -> Result<T> {
        loop {
            self.publisher.publish(request.clone()).await?;
            let answered = async {
                while let Some(answer) = self.answers.recv().await {
                    if let Some(found) = read(answer) {
                        return Ok(found);
                    }
                }
                Err(Error::new(ErrorKind::Closed, "the control socket was closed"))
            };
            if let Ok(answer) = tokio::time::timeout(interval, answered).await {
                return answer;
            }
        }
    }
}
