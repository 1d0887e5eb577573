//! `xmsg context`: named sets of addresses and credentials.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use xmsg_core::text::json_escaped;
use xmsg_core::{ProxyAddress, RegistrarAddress};

use crate::admin;
use crate::contexts::{Context, Contexts, check_name};
use crate::exit::{Exit, Usage};
use crate::output::{Output, note};
use crate::settings::{self, Found, Setting, Source};
use crate::table;

const EXAMPLES: &str = "\
Examples:
  xmsg context add lab --proxy 10.0.0.7 --server-key KEY --key-file me.key --select
  xmsg context add home --proxy localhost
  xmsg context list
  xmsg context show                                  what holds now, and where it comes from
  xmsg context select home                           from now on
  xmsg --context lab ping                            for this command
  xmsg context remove lab";

const ADD_EXAMPLES: &str = "\
Examples:
  xmsg context add lab --proxy 10.0.0.7 --registrar 10.0.0.8 --select
  xmsg context add lab --force --proxy 10.0.0.7 --user alice --password-file alice.password";
const SELECT_EXAMPLES: &str = "\
Examples:
  xmsg context select lab
  xmsg context select --none";
const SHOW_EXAMPLES: &str = "\
Examples:
  xmsg context show
  xmsg context show lab --json";
const LIST_EXAMPLES: &str = "\
Examples:
  xmsg context list
  xmsg context list --json";
const REMOVE_EXAMPLES: &str = "\
Examples:
  xmsg context remove lab";

/// Keep addresses and keys under a name, and choose among them
///
/// A context may have: proxy, registrar, server key, key file, user, password file, address and token file of
/// the HTTP server. Options and the environment take precedence over it. The file is the one that
/// `XMSG_CONFIG` names, or else xmsg/contexts.toml in `XDG_CONFIG_HOME` or ~/.config; only its owner can read
/// it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add a context
    #[command(after_help = ADD_EXAMPLES)]
    Add(Box<Add>),
    /// Choose the context for all commands from now on
    #[command(after_help = SELECT_EXAMPLES)]
    Select {
        /// The context
        #[arg(required_unless_present = "none", conflicts_with = "none")]
        name: Option<String>,

        /// Choose no context
        #[arg(long)]
        none: bool,
    },
    /// Show each value that applies with a context, and where it comes from
    #[command(after_help = SHOW_EXAMPLES)]
    Show {
        /// The context [default: the one of `XMSG_CONTEXT`, or else the selected one]
        name: Option<String>,

        /// Write one JSON document
        #[arg(long)]
        json: bool,
    },
    /// List the contexts; * is the selected one
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// One object of JSON on each line
        #[arg(long)]
        json: bool,
    },
    /// Remove a context
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove {
        /// The context
        name: String,
    },
}

#[derive(Debug, Args)]
struct Add {
    /// Its name: letters, digits, `-`, `_` and `.`
    name: String,

    /// The proxy
    #[arg(long, value_name = "HOST[:PORT]")]
    proxy: Option<String>,

    /// The registrar
    #[arg(long, value_name = "HOST[:PORT]")]
    registrar: Option<String>,

    /// CURVE: the public key of the proxy and the registrar
    #[arg(id = "context_server_key", long = "server-key", value_name = "KEY", allow_hyphen_values = true)]
    server_key: Option<String>,

    /// CURVE: the file with our keys
    #[arg(id = "context_key_file", long = "key-file", value_name = "FILE")]
    key_file: Option<String>,

    /// PLAIN: our name
    #[arg(id = "context_user", long = "user", value_name = "NAME")]
    user: Option<String>,

    /// PLAIN: the file with our password
    #[arg(id = "context_password_file", long = "password-file", value_name = "FILE")]
    password_file: Option<String>,

    /// The HTTP server of the proxy
    #[arg(id = "context_admin", long = "admin", value_name = "HOST:PORT|URL")]
    admin: Option<String>,

    /// The file with the token of the HTTP server
    #[arg(id = "context_admin_token_file", long = "admin-token-file", value_name = "FILE")]
    admin_token_file: Option<String>,

    /// Choose the new context, too
    #[arg(long)]
    select: bool,

    /// Replace the context of this name, with all its values
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    match arguments.action {
        Action::Add(arguments) => add(&arguments),
        Action::Select { name, .. } => {
            Contexts::edit(|contexts, editor| {
                if let Some(name) = &name {
                    contexts.get(name).ok_or_else(|| contexts.unknown(name, ""))?;
                }
                editor.select(name.as_deref());
                Ok(())
            })?;
            match name {
                Some(name) => note(format_args!("the context is {name} from now on")),
                None => note("there is no context from now on"),
            }
            Ok(Exit::Done)
        }
        Action::Show { name, json } => show(name, json),
        Action::List { json } => list(json),
        Action::Remove { name } => {
            Contexts::edit(|contexts, editor| {
                contexts.get(&name).ok_or_else(|| contexts.unknown(&name, ""))?;
                editor.remove(&name);
                Ok(())
            })?;
            note(format_args!("the context {name} is removed"));
            Ok(Exit::Done)
        }
    }
}

fn add(arguments: &Add) -> anyhow::Result<Exit> {
    let Add { name, select, force, .. } = arguments;
    check_name(name)?;
    let mut values = BTreeMap::new();
    for (setting, value) in [
        (&settings::PROXY, &arguments.proxy),
        (&settings::REGISTRAR, &arguments.registrar),
        (&settings::SERVER_KEY, &arguments.server_key),
        (&settings::KEY_FILE, &arguments.key_file),
        (&settings::USER, &arguments.user),
        (&settings::PASSWORD_FILE, &arguments.password_file),
        (&settings::ADMIN, &arguments.admin),
        (&settings::ADMIN_TOKEN_FILE, &arguments.admin_token_file),
    ] {
        let Some(value) = value.as_ref().filter(|value| !value.is_empty()) else { continue };
        // Paths are made absolute, because a later command may run in another folder.
        let value = if setting.is_path {
            let path = std::path::absolute(value).with_context(|| format!("the path {value}"))?;
            path.to_str().with_context(|| Usage(format!("the path {value} is not UTF-8")))?.to_owned()
        } else {
            value.clone()
        };
        values.insert(setting.key, value);
    }
    if values.is_empty() {
        bail!(Usage("a context without a value says nothing: give --proxy, for example".to_owned()));
    }
    check(&values)?;
    let path = Contexts::edit(|contexts, editor| {
        if contexts.get(name).is_some() && !force {
            bail!(Usage(format!(
                "the context {name} exists: replace it with --force, or choose another name"
            )));
        }
        editor.put(&Context::new(name, &values));
        if *select {
            editor.select(Some(name));
        }
        Ok(())
    })?;
    let how = if *select { "is added, and selected" } else { "is added" };
    note(format_args!("the context {name} {how}: {}", path.display()));
    Ok(Exit::Done)
}

/// Checks the values, so that an error is reported now and not by a later command.
fn check(values: &BTreeMap<&'static str, String>) -> anyhow::Result<()> {
    let found = |setting: &Setting| {
        let value = values.get(setting.key)?.clone();
        Some(Found { value, source: Source::Option(setting.option()) })
    };
    found(&settings::PROXY).map(|found| found.parse::<ProxyAddress>()).transpose()?;
    found(&settings::REGISTRAR).map(|found| found.parse::<RegistrarAddress>()).transpose()?;
    found(&settings::ADMIN).map(|found| found.parse::<admin::Address>()).transpose()?;
    if let Some(found) = found(&settings::ADMIN_TOKEN_FILE) {
        admin::read_token(&found)?;
    }
    // Other sources may supply what is missing in the context, but its own values must also be valid alone.
    settings::security_of(found)?;
    Ok(())
}

fn show(name: Option<String>, as_json: bool) -> anyhow::Result<Exit> {
    let contexts = Contexts::read()?;
    let found = match name {
        Some(value) => Some(Found { value, source: Source::Option("`xmsg context show`") }),
        None => settings::CONTEXT.find(None, None)?,
    };
    let context = contexts.choose(found.as_ref())?;
    let mut rows = Vec::new();
    for setting in settings::ALL {
        if let Some(found) = setting.find(None, context.as_ref())? {
            rows.push((setting.key, found));
        }
    }
    if as_json {
        let values: serde_json::Map<_, _> = rows
            .iter()
            .map(|(key, found)| {
                let value = json!({ "value": found.value, "source": found.source.to_string() });
                (key.replace('-', "_"), value)
            })
            .collect();
        let name = context.map(|context| context.name);
        let document = json!({ "context": name, "values": values });
        return write(&format!("{}\n", json_escaped(&document.to_string())));
    }
    let row = |(key, found): (&str, Found)| [key.to_owned(), found.value, found.source.to_string()];
    table::write(["SETTING", "VALUE", "FROM"], rows.into_iter().map(row).collect(), "value")
}

fn list(as_json: bool) -> anyhow::Result<Exit> {
    let contexts = Contexts::read()?;
    let mut rows = Vec::new();
    let mut lines = String::new();
    for name in contexts.names() {
        let is_selected = contexts.selected() == Some(name);
        let Some(context) = contexts.get(name) else { continue };
        let value = |setting| context.value(setting).map(|(value, _)| value);
        if as_json {
            let values = settings::ALL.iter().filter_map(|setting| Some((setting.key, value(setting)?)));
            let values: serde_json::Map<_, _> =
                values.map(|(key, value)| (key.replace('-', "_"), value.into())).collect();
            let line = json!({ "name": name, "selected": is_selected, "values": values });
            lines += &(json_escaped(&line.to_string()).into_owned() + "\n");
            continue;
        }
        let shown = |setting| value(setting).unwrap_or_default();
        let security = match (value(&settings::SERVER_KEY), value(&settings::USER)) {
            (Some(_), _) => "CURVE",
            (None, Some(_)) => "PLAIN",
            (None, None) => "",
        };
        let selected = if is_selected { "*" } else { "" };
        rows.push([
            selected.to_owned(),
            name.to_owned(),
            shown(&settings::PROXY),
            shown(&settings::REGISTRAR),
            security.to_owned(),
        ]);
    }
    if as_json {
        return write(&lines);
    }
    table::write(["", "NAME", "PROXY", "REGISTRAR", "SECURITY"], rows, "context")
}

fn write(text: &str) -> anyhow::Result<Exit> {
    let mut output = Output::stdout()?;
    output.write(text.as_bytes())?;
    output.flush()?;
    Ok(Exit::Done)
}
