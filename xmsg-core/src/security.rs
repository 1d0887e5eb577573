//! Who may connect, and what the environment says of it. Mechanisms, keys and the files that keys lie in are those of
//! [`xmsg_zmq::security`], and found here, too.

pub use xmsg_zmq::security::*;

use crate::{Error, ErrorKind, Result};

/// What the environment says a client is to use:
///
/// `XMSG_SERVER_KEY`: the server's public key, which means CURVE; `XMSG_KEY_FILE`: the file with our keys (without it, they are
/// made up). `XMSG_USER` and `XMSG_PASSWORD_FILE`: PLAIN. Nothing of it: NULL.
pub fn from_environment() -> Result<Security> {
    from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// The same with other variables, as those of a test.
pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Security> {
    let called = |name: &str| match variable(name) {
        Some(_) => format!("{name} in the environment"),
        None => name.to_owned(),
    };
    from_options(&variable, called)
}

/// The same for a program that takes them from elsewhere, as from its command line: errors call each what `called` says.
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
