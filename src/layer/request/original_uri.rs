//! The URI that axum's routers note before they take off the path of a nested one.

use axum::extract::OriginalUri;
use http::{Extensions, Uri};

/// Replaces the noted URI, if `masked` has another one for it.
pub(super) fn mask_original_uri(
    extensions: &mut Extensions,
    masked: impl FnOnce(&Uri) -> Option<Uri>,
) {
    if let Some(OriginalUri(uri)) = extensions.get_mut()
        && let Some(masked) = masked(uri)
    {
        *uri = masked;
    }
}
