//! The security mechanism of a client, as the environment chooses it. It also re-exports the mechanisms, keys
//! and key files of [`xmsg_zmq::security`].

pub use xmsg_zmq::security::*;

use crate::{Error, ErrorKind, Result};

/// Reads from the environment which security mechanism a client uses.
///
/// - CURVE: `XMSG_SERVER_KEY` is the public key of the server. `XMSG_KEY_FILE` is the file with the keys of
///   the client; without it, a new key pair is generated.
/// - PLAIN: `XMSG_USER` is the name of the user and `XMSG_PASSWORD_FILE` the file with the password.
/// - NULL: none of these variables is set.
///
/// # Errors
/// An error that names the variable: a file cannot be read, a key is invalid, or the variables do not fit
/// together ([`InvalidOption`](ErrorKind::InvalidOption)).
pub fn from_environment() -> Result<Security> {
    from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// Chooses the mechanism as [`from_environment`] does, from variables that `variable` returns, such as those
/// of a test.
///
/// # Errors
/// The errors of [`from_environment`].
pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Security> {
    let called = |name: &str| match variable(name) {
        Some(_) => format!("{name} in the environment"),
        None => name.to_owned(),
    };
    from_options(&variable, called)
}

/// Chooses the mechanism as [`from_environment`] does, for a program that takes the values from elsewhere,
/// such as its command line. Errors name each value with the text that `called` returns for its variable.
///
/// # Errors
/// The errors of [`from_environment`].
pub fn from_options(
    variable: impl Fn(&str) -> Option<String>,
    called: impl Fn(&str) -> String,
) -> Result<Security> {
    let named = |name: &str, error: &Error| Error::new(error.kind(), format!("{}: {error}", called(name)));
    let unusable = |what: String| Err(Error::new(ErrorKind::InvalidOption, what));
    match (variable("XMSG_SERVER_KEY"), variable("XMSG_KEY_FILE"), variable("XMSG_USER")) {
        (None, None, None) => Ok(Security::Null),
        (Some(_), _, Some(_)) => unusable(format!(
            "{} means CURVE and {} means PLAIN: leave one of them out",
            called("XMSG_SERVER_KEY"),
            called("XMSG_USER"),
        )),
        (Some(server), file, None) => {
            let server = server.parse().map_err(|error: KeyError| {
                let error =
                    Error::new(ErrorKind::InvalidOption, format!("{error}, as `xmsg keygen` prints them"));
                named("XMSG_SERVER_KEY", &error)
            })?;
            let keys = match file {
                Some(file) => read_key_file(file.as_ref()).map_err(|e| named("XMSG_KEY_FILE", &e))?,
                None => KeyPair::generate()?,
            };
            Ok(Security::CurveClient { keys, server })
        }
        (None, Some(_), _) => unusable(format!(
            "{} is given without {}: give the server's public key, too",
            called("XMSG_KEY_FILE"),
            called("XMSG_SERVER_KEY"),
        )),
        (None, None, Some(user)) => {
            let Some(file) = variable("XMSG_PASSWORD_FILE") else {
                return unusable(format!(
                    "{} is given without {}: name the file with the password",
                    called("XMSG_USER"),
                    called("XMSG_PASSWORD_FILE"),
                ));
            };
            let password = Password::read(file.as_ref()).map_err(|e| named("XMSG_PASSWORD_FILE", &e))?;
            Ok(Security::PlainClient { user, password })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn the_environment_chooses_the_mechanism() {
        let keys = KeyPair::generate().unwrap();
        let server = keys.public().to_string();
        assert!(matches!(from_variables(environment(&[])), Ok(Security::Null)));
        let curve = from_variables(environment(&[("XMSG_SERVER_KEY", &server)])).unwrap();
        assert!(matches!(curve, Security::CurveClient { server, .. } if server == *keys.public()));
        for wrong in [
            &[("XMSG_SERVER_KEY", "short")][..],
            &[("XMSG_KEY_FILE", "file")],
            &[("XMSG_USER", "me")],
            &[("XMSG_USER", "me"), ("XMSG_SERVER_KEY", &server)],
            &[("XMSG_SERVER_KEY", &server), ("XMSG_KEY_FILE", "/no/such/file")],
        ] {
            let error = from_variables(environment(wrong)).unwrap_err().to_string();
            assert!(error.contains("XMSG_"), "{error}");
        }
    }
}
