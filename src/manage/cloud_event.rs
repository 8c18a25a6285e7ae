//! A line of the usage ledger as an event of [CloudEvents 1.0](https://cloudevents.io).

use serde_json::json;

use crate::{
    record::rfc3339,
    store::{BucketWidth, port::HourlyUse},
};

/// The `type` of the event. It changes with the meaning of its data.
const TYPE: &str = "io.github.tower-api-key.usage.hour";

impl HourlyUse {
    /// The `id` of the event: the key and the hour. The same each time, so that a receiver
    /// recognizes an event that is sent again.
    #[must_use]
    pub fn event_id(&self) -> String {
        format!("{}/{}", self.key_id, rfc3339(self.hour))
    }

    /// The event in the JSON format of CloudEvents 1.0, of media type
    /// `application/cloudevents+json`.
    ///
    /// `source` says which system counted, as a URI reference: ids are unique within it. `subject`
    /// is the consumer, and `time` the beginning of the hour, so that a receiver that sums up days
    /// or months by `time` puts the hour where it belongs.
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// # use tower_api_key::{record::KeyId, store::port::{HourlyUse, UseCounts}};
    /// # let hour = HourlyUse::new(
    /// #     KeyId::from_bytes([7; 16]), "acme".into(), SystemTime::UNIX_EPOCH, UseCounts::default());
    /// let event = hour.to_cloud_event("https://api.example.com");
    /// assert!(event.contains(r#""specversion":"1.0""#));
    /// ```
    #[must_use]
    pub fn to_cloud_event(&self, source: &str) -> String {
        let (from, counts) = (rfc3339(self.hour), self.counts);
        let end = self.hour.checked_add(BucketWidth::Hour.duration()).unwrap_or(self.hour);
        json!({
            "specversion": "1.0",
            "id": self.event_id(),
            "source": source,
            "type": TYPE,
            "time": from,
            "subject": self.consumer_id,
            "datacontenttype": "application/json",
            "data": {
                "consumer_id": self.consumer_id,
                "key_id": self.key_id.to_string(),
                "from": from,
                "to": rfc3339(end),
                "admitted": counts.admitted,
                "limited": counts.limited,
                "forbidden": counts.forbidden,
                "refused": counts.refused,
                "units": counts.units,
            },
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::Value;

    use super::*;
    use crate::{record::KeyId, store::port::UseCounts};

    #[test]
    fn an_hour_is_an_event_of_cloudevents_1_0() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_268_800);
        let counts = UseCounts::new(5, 4, 3, 2, -1);
        let hour = HourlyUse::new(KeyId::from_bytes([7; 16]), "acme".into(), noon, counts);
        let event: Value = serde_json::from_str(&hour.to_cloud_event("/billing")).unwrap();
        let id = "07070707-0707-0707-0707-070707070707";
        let expected = json!({
            "specversion": "1.0",
            "id": format!("{id}/2026-01-01T12:00:00Z"),
            "source": "/billing",
            "type": "io.github.tower-api-key.usage.hour",
            "time": "2026-01-01T12:00:00Z",
            "subject": "acme",
            "datacontenttype": "application/json",
            "data": {
                "consumer_id": "acme", "key_id": id,
                "from": "2026-01-01T12:00:00Z", "to": "2026-01-01T13:00:00Z",
                "admitted": 5, "limited": 4, "forbidden": 3, "refused": 2, "units": -1,
            },
        });
        assert_eq!(event, expected);
    }
}
