//! Control requests: a publisher that sends them to a proxy, and the control socket on which the answers
//! arrive.

use std::time::Duration;

use bytes::Bytes;
use xmsg_core::control::secret_identity;
use xmsg_core::{ConnectionId, Error, ErrorKind, Result};
use xmsg_zmq::{Dealer, Endpoint, Multipart, Publisher, SocketOptions};

use crate::args::{ConnectOptions, SecurityOptions};

/// The sockets for control requests to one proxy.
#[derive(Debug)]
pub(crate) struct ControlSockets {
    /// The identity of the socket for answers: requests with this ID are answered there.
    pub(crate) id: ConnectionId,
    pub(crate) publisher: Publisher,
    answers: Dealer,
    /// The endpoint and the options of `answers`.
    endpoint: Endpoint,
    options: SocketOptions,
}

impl ControlSockets {
    /// Creates both sockets and starts connecting them, without waiting for the connections.
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

    /// Connects the socket for answers again, with an identity that nobody else knows, and returns this
    /// identity.
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

    /// Sends this request, and repeats it after each interval, until `read` accepts an answer. A request may
    /// arrive before its answer can be sent.
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
