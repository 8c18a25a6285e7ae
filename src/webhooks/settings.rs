use std::{sync::Arc, time::Duration};

use super::{client::Client, dyn_store::DynStore, target::Targets};
use crate::{clock::Clock, key::EntropySource};

/// What the worker and tests of endpoints share.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) store: Arc<dyn DynStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn EntropySource>,
    pub(super) client: Client,
    pub(super) targets: Targets,
    pub(super) interval: Duration,
    pub(super) lease: Duration,
}
