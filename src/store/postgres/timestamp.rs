use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef, types::Oid},
};

/// A `timestamptz` in microseconds since 1970. Decoded without `time`, whose arithmetic panics on
/// `infinity`.
#[derive(Clone, Copy)]
pub(super) struct Timestamp(pub(super) i64);

impl Timestamp {
    /// Whether PostgreSQL can store this time: from 4714 BC to 294276 AD.
    pub(super) fn is_storable(self) -> bool {
        const FIRST: i64 = -211_813_488_000_000_000;
        const END: i64 = 9_223_371_331_200_000_000;
        let since_2000 = self.0.checked_sub(MICROS_1970_TO_2000);
        since_2000.is_some_and(|micros| (FIRST..END).contains(&micros))
    }
}

/// PostgreSQL counts from 2000.
const MICROS_1970_TO_2000: i64 = 946_684_800_000_000;

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1184))
    }
}

impl PgHasArrayType for Timestamp {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1185))
    }
}

impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let micros = self.0.checked_sub(MICROS_1970_TO_2000).ok_or("time out of range")?;
        buffer.extend(&micros.to_be_bytes());
        Ok(IsNull::No)
    }
}

impl Decode<'_, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        let micros = i64::from_be_bytes(value.as_bytes()?.try_into()?);
        // PostgreSQL represents the infinities as the ends of the range.
        if matches!(micros, i64::MIN | i64::MAX) {
            return Err("infinite time".into());
        }
        Ok(Self(micros.checked_add(MICROS_1970_TO_2000).ok_or("time out of range")?))
    }
}
