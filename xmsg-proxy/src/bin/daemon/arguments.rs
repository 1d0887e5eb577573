//! The options that all daemons have, and their precedence over the settings file.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, CommandFactory, FromArgMatches};
use xmsg_proxy::settings::{self, Admin, HostPort, Log, LogFormat, Named, Seconds, Settings};

/// The command line of a daemon.
pub(crate) trait Program: CommandFactory + FromArgMatches + Clone + Send + 'static {
    /// The settings of the daemon.
    type Settings: Settings;

    /// The name of the program.
    const NAME: &'static str;

    /// The environment variables of common options, each after the name of its option.
    const COMMON_ENV: [(&'static str, &'static str); 5];

    /// The names of the sockets that a service manager may pass, each with the number of sockets.
    const SOCKETS: &'static [(&'static str, usize)];

    /// Returns the common options.
    fn common(&self) -> &CommonArguments;

    /// Replaces settings by the options and the environment.
    fn overlay(&self, settings: &mut Self::Settings);

    /// Parses the command line. On an error it prints that, and exits.
    fn from_command_line() -> Self {
        let mut command = Self::command();
        for (option, variable) in Self::COMMON_ENV {
            command = command.mut_arg(option, |option| option.env(variable));
        }
        let read = command.try_get_matches_from_mut(std::env::args_os());
        let read = read
            .and_then(|matches| Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command)));
        read.unwrap_or_else(|error| {
            let text = error.render().to_string();
            match text.strip_prefix("error: ") {
                // The lines of a daemon appear among those of others, so each begins with its name.
                Some(text) => {
                    eprintln!("{}: {}", Self::NAME, text.trim_end());
                    std::process::exit(2)
                }
                None => error.exit(),
            }
        })
    }
}

/// The options that all daemons have.
#[derive(Args, Clone, Debug)]
pub(crate) struct CommonArguments {
    /// Read settings from this TOML file. The environment goes over it, and options over both; SIGHUP reads
    /// it again
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Check all settings and the files that they name, and start nothing
    #[arg(long)]
    pub(crate) check_config: bool,

    /// Print all settings as a file, and start nothing
    #[arg(long, conflicts_with = "check_config")]
    pub(crate) print_config: bool,

    /// How long to go on working after SIGINT or SIGTERM, such as 500ms or 10s [default: 5s]
    #[arg(long, value_name = "DURATION")]
    linger: Option<Seconds>,

    /// Serve HTTP: health, metrics, connections, and the web page of a proxy, which is there unless it is
    /// turned off. Beyond the loopback it needs a token; port 0: any free one; `off`: don't
    #[arg(long, value_name = "[ADDRESS:]PORT", num_args = 0..=1, default_missing_value = "on")]
    admin: Option<Switchable<HostPort>>,

    /// Answer HTTP requests only with the token in the first line of this file
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,

    /// What log lines look like: `text` or `json` [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Named<LogFormat>>,

    /// What to log, such as `warn` or `info,xmsg_proxy::switch=debug`; over `RUST_LOG` [default: info]
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,

    /// Log every connection: the same as `--log-filter debug`
    #[arg(long, short)]
    verbose: bool,
}

impl CommonArguments {
    /// Replaces settings by these options. `debug` is the name of the variable that enables verbose logging.
    pub(crate) fn overlay(&self, log: &mut Log, admin: &mut Admin, linger: &mut Seconds, debug: &str) {
        set(linger, self.linger);
        set(&mut log.format, self.log_format);
        if std::env::var_os(debug).is_some() {
            "debug".clone_into(&mut log.filter);
        }
        // Empty means unset, as everywhere where this variable is read.
        if let Some(filter) = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty()) {
            log.filter = filter;
        }
        if self.verbose {
            "debug".clone_into(&mut log.filter);
        }
        set(&mut log.filter, self.log_filter.clone());
        if let Some(choice) = &self.admin {
            let listen = choice.clone().apply(&mut admin.enabled);
            admin.listen = listen.or(admin.listen.take());
        }
        if let Some(path) = &self.admin_token_file {
            admin.token_file = Some(settings::absolute(path));
        }
    }
}

/// Replaces a setting by an option, if that was given.
pub(crate) fn set<T>(setting: &mut T, option: Option<T>) {
    if let Some(option) = option {
        *setting = option;
    }
}

/// Something that is switched on, with or without saying how, or off.
#[derive(Clone, Debug)]
pub(crate) enum Switchable<T> {
    On,
    Off,
    With(T),
}

impl<T> Switchable<T> {
    pub(crate) fn apply(self, enabled: &mut bool) -> Option<T> {
        *enabled = !matches!(self, Self::Off);
        if let Self::With(with) = self { Some(with) } else { None }
    }
}

impl<T: FromStr<Err: ToString>> FromStr for Switchable<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::With).map_err(|error: T::Err| error.to_string()),
        }
    }
}
