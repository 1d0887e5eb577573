//! What fuzzing gets at beyond the public interface, of which this is no part.

use xmsg_zmq::Multipart;

pub use crate::registrar::fuzzing::Registrar;

/// Whether the controller knows this as a request.
#[must_use]
pub fn is_control_request(message: &Multipart) -> bool {
    crate::switch::Request::read(message.frames().iter().cloned()).is_some()
}
