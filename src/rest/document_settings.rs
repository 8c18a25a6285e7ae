/// Settings of the document.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "openapi"), expect(dead_code, reason = "there is no document"))]
pub(crate) struct Settings {
    pub(crate) title: &'static str,
    /// Whether the callers are members, not keys.
    pub(crate) is_of_members: bool,
    /// Whether a new key is for the caller's consumer unless the request says otherwise.
    pub(crate) is_own_account: bool,
    /// Whether it is served without a key.
    pub(crate) is_open: bool,
}
