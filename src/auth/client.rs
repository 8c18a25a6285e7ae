//! What a check knows of the client, and whether a key works from there.

use std::{error::Error, fmt, net::IpAddr};

use super::ClientNetwork;
use crate::record::{KeyId, KeyKind, KeyRecord, Networks, WebOrigins};

/// Bytes of a `User-Agent`. A longer one is left out: cut, it could end in a part of a key.
const MAX_USER_AGENT: usize = 512;

/// A copy of a `User-Agent`, unless it is too long.
pub(super) fn short_user_agent(text: &[u8]) -> Option<Box<[u8]>> {
    (text.len() <= MAX_USER_AGENT).then(|| Box::from(text))
}

/// What is known of the client of a request. Asked only where it matters.
pub(crate) trait Client {
    /// The network that failures are counted by; `None` if they are not limited.
    fn network(&self) -> Option<ClientNetwork>;

    /// The address.
    fn address(&self) -> Address;

    /// The value of the `Origin` header, if there is exactly one.
    fn origin(&self) -> Option<&[u8]>;

    /// What the client calls itself.
    fn user_agent(&self) -> Option<&[u8]> {
        None
    }
}

/// The address of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// The caller of the check does not pass addresses.
    NotTold,
    /// This request has none that can be trusted.
    Unknown,
    Known(IpAddr),
}

/// A copy of what is known of a client, for a check that waits.
#[derive(Clone, Debug)]
pub(super) struct ClientCopy {
    network: Option<ClientNetwork>,
    address: Address,
    origin: Option<Box<[u8]>>,
    user_agent: Option<Box<[u8]>>,
}

impl ClientCopy {
    pub(super) fn of(client: &impl Client) -> Self {
        // A longer one is not an origin of any key.
        let origin = client.origin().filter(|origin| origin.len() <= WebOrigins::MAX_LEN);
        Self {
            network: client.network(),
            address: client.address(),
            origin: origin.map(Box::from),
            user_agent: client.user_agent().and_then(short_user_agent),
        }
    }

    /// Failures of this check are not counted.
    pub(super) fn uncounted(self) -> Self {
        Self { network: None, ..self }
    }
}

impl Client for ClientCopy {
    fn network(&self) -> Option<ClientNetwork> {
        self.network
    }

    fn address(&self) -> Address {
        self.address
    }

    fn origin(&self) -> Option<&[u8]> {
        self.origin.as_deref()
    }

    fn user_agent(&self) -> Option<&[u8]> {
        self.user_agent.as_deref()
    }
}

/// Where a key works from. Few keys have one.
#[derive(Debug)]
pub(super) struct Places {
    networks: Networks,
    kind: KeyKind,
    origins: WebOrigins,
}

impl Places {
    /// `None` for a key that works from anywhere.
    pub(super) fn of(record: &KeyRecord) -> Option<Box<Self>> {
        let KeyRecord { networks, kind, origins, .. } = record;
        if networks.is_empty() && *kind == KeyKind::Secret && origins.is_empty() {
            return None;
        }
        let (networks, kind, origins) = (networks.clone(), *kind, origins.clone());
        Some(Box::new(Self { networks, kind, origins }))
    }

    /// Why the key does not work for this client, if so.
    #[cold]
    pub(super) fn refusal(&self, key_id: KeyId, client: &impl Client) -> Option<PlaceRefusal> {
        let refusal = |reason| Some(PlaceRefusal { key_id, reason });
        if !self.networks.is_empty() {
            match client.address() {
                Address::NotTold => return refusal(PlaceReason::AddressNotTold),
                Address::Unknown => return refusal(PlaceReason::AddressUnknown),
                Address::Known(address) if !self.networks.admit(address) => {
                    return refusal(PlaceReason::Network(address));
                }
                Address::Known(_) => {}
            }
        }
        if self.kind == KeyKind::Secret && self.origins.is_empty() {
            return None;
        }
        match client.origin() {
            None => refusal(PlaceReason::NoOrigin),
            Some(origin) if !self.origins.admit(origin) => refusal(PlaceReason::Origin),
            Some(_) => None,
        }
    }
}

/// Why a key does not work for a client, for the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaceRefusal {
    pub(super) key_id: KeyId,
    pub(super) reason: PlaceReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PlaceReason {
    AddressNotTold,
    AddressUnknown,
    Network(IpAddr),
    NoOrigin,
    Origin,
}

impl PlaceReason {
    /// Whether the origin was wrong, and not the network.
    pub(super) fn is_of_origin(self) -> bool {
        matches!(self, Self::NoOrigin | Self::Origin)
    }
}

/// Without anything that the client sent: the address is logged beside it.
impl fmt::Display for PlaceRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            PlaceReason::AddressNotTold => {
                "it has networks, but the layer does not know addresses: set \
                 `ApiKeyLayer::client_address`"
            }
            PlaceReason::AddressUnknown => {
                "it has networks, but the request has no trusted address: compare \
                 `ApiKeyLayer::client_address` with the proxies in front of the service"
            }
            PlaceReason::Network(_) => "the client's address is in none of its networks",
            PlaceReason::NoOrigin => "it is publishable, and the request has no single `Origin`",
            PlaceReason::Origin => "it is publishable, and `Origin` is none of its origins",
        };
        write!(f, "key {}: {reason}", self.key_id)
    }
}

impl Error for PlaceRefusal {}
