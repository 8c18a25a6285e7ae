//! Options for where a key works from, and for its tags.

use clap::Args;
use tower_api_key::{
    manage::{KeyUpdate, NewKey},
    record::{InvalidNetwork, Network, Tags, WebOrigins},
};

use super::failure::Failure;

/// Where a new key works from, and its tags.
#[derive(Args, Debug)]
pub(crate) struct Places {
    /// A network that it works from, such as 203.0.113.0/24 or 2001:db8::/32; may be repeated, or
    /// several separated by commas [default: it works from anywhere]
    ///
    /// Services must know where requests come from: see ApiKeyLayer::client_address of the library.
    #[arg(long = "network", value_name = "CIDR", value_delimiter = ',')]
    networks: Vec<Network>,

    /// A tag, by which people and `api-key list --tag` find it; may be repeated, or several
    /// separated by commas
    #[arg(long = "tag", value_name = "TAG", value_delimiter = ',', value_parser = tag)]
    tags: Vec<String>,

    /// Make it publishable: for pages that everyone can read, see --origin
    ///
    /// Requests with it need an Origin header that is one of its origins. Give it only scopes that
    /// anyone may have. A key cannot be made publishable, or secret, later.
    #[arg(long, requires = "origins")]
    publishable: bool,

    /// Make it a canary: it is always refused, and its use is in its audit, as canary_used
    ///
    /// Put it where only an intruder would find it. It cannot have limits, a plan or networks, and
    /// cannot be made another kind of key later.
    #[arg(long, conflicts_with_all = ["publishable", "networks"])]
    canary: bool,

    /// An origin that a publishable key works for, such as https://shop.example; may be repeated,
    /// or several separated by commas
    #[arg(long = "origin", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin,
        requires = "publishable")]
    origins: Vec<String>,
}

/// Changes of where a key works from, and of its tags.
#[derive(Args, Debug)]
pub(crate) struct NewPlaces {
    /// A network that it works from; all given networks replace its present ones; may be repeated,
    /// or several separated by commas
    #[arg(long = "network", value_name = "CIDR", value_delimiter = ',', group = "change")]
    networks: Vec<Network>,

    /// Let it work from anywhere
    #[arg(long, group = "change", conflicts_with = "networks")]
    no_networks: bool,

    /// A tag; all given tags replace its present ones; may be repeated, or several separated by
    /// commas
    #[arg(long = "tag", value_name = "TAG", value_delimiter = ',', value_parser = tag,
        group = "change")]
    tags: Vec<String>,

    /// Remove all of its tags
    #[arg(long, group = "change", conflicts_with = "tags")]
    no_tags: bool,

    /// An origin that a publishable key works for; all given origins replace its present ones; may
    /// be repeated, or several separated by commas
    #[arg(long = "origin", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin,
        group = "change")]
    origins: Vec<String>,
}

impl Places {
    pub(crate) fn of(self, new: NewKey) -> Result<NewKey, Failure> {
        let mut new = new.networks(networks(self.networks)?).tags(tags(self.tags)?);
        if self.publishable {
            new = new.publishable(origins(self.origins)?);
        }
        if self.canary {
            new = new.canary();
        }
        Ok(new)
    }
}

impl NewPlaces {
    pub(crate) fn of(self, mut update: KeyUpdate) -> Result<KeyUpdate, Failure> {
        if !self.networks.is_empty() || self.no_networks {
            update = update.networks(networks(self.networks)?);
        }
        if !self.tags.is_empty() || self.no_tags {
            update = update.tags(tags(self.tags)?);
        }
        if !self.origins.is_empty() {
            update = update.origins(origins(self.origins)?);
        }
        Ok(update)
    }
}

fn networks(networks: Vec<Network>) -> Result<tower_api_key::record::Networks, Failure> {
    let invalid = |error: InvalidNetwork| Failure::usage(format!("--network: {error}"));
    networks.try_into().map_err(invalid)
}

fn tags(tags: Vec<String>) -> Result<Tags, Failure> {
    Tags::parse(tags).map_err(|error| Failure::usage(format!("--tag: {error}")))
}

fn origins(origins: Vec<String>) -> Result<WebOrigins, Failure> {
    WebOrigins::parse(origins).map_err(|error| Failure::usage(format!("--origin: {error}")))
}

pub(crate) fn tag(text: &str) -> Result<String, String> {
    Tags::parse([text]).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

pub(crate) fn origin(text: &str) -> Result<String, String> {
    WebOrigins::parse([text]).map(|_| text.to_owned()).map_err(|error| error.to_string())
}
