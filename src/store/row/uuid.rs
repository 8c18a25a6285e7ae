/// A [`KeyId`](crate::record::KeyId) as a parameter and a column of both databases.
///
/// sqlx's feature `uuid` also names its SQLite driver, which puts `libsqlite3-sys` into the lock file
/// of every service, and Cargo allows one version of that.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Uuid([u8; 16]);

impl Uuid {
    pub(in crate::store) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(in crate::store) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    pub(in crate::store) fn into_bytes(self) -> [u8; 16] {
        self.0
    }
}
