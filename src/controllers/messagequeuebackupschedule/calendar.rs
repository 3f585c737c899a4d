//! When backups are due: five cron fields in a time zone.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, civil::Date, tz::TimeZone};

use crate::api::v1alpha1::MessageQueueBackupScheduleSpec;

/// A schedule that was understood.
#[derive(Clone, Debug)]
pub struct Calendar {
    cron: Cron,
    zone: TimeZone,
}

impl Calendar {
    /// The error says which field is wrong, and what would be right.
    pub fn of(spec: &MessageQueueBackupScheduleSpec) -> Result<Self, String> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(&spec.schedule).map_err(|error| {
            format!(
                "schedule: '{}' is not understood: {error}; five fields are needed, such as '0 3 * * *' (minute, hour, day \
                 of month, month, day of week)",
                spec.schedule
            )
        })?;
        let zone = TimeZone::get(&spec.time_zone).map_err(|_| {
            format!(
                "timeZone: '{}' is not in the time zone database: use an IANA name such as 'Europe/Berlin' or 'Etc/UTC'",
                spec.time_zone
            )
        })?;
        Ok(Self { cron, zone })
    }

    /// The last time that was due after `since` and not after `now`. Any number of missed ones count as this one.
    pub fn due(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let last = self.cron.find_previous_occurrence(&now.to_zoned(self.zone.clone()), true).ok()?.timestamp();
        (last > since).then_some(last)
    }

    /// The first time that is due after `now`; none where the fields name a day that never comes (30 February).
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        Some(self.cron.find_next_occurrence(&now.to_zoned(self.zone.clone()), false).ok()?.timestamp())
    }

    /// The day, in the schedule's zone.
    pub fn day(&self, at: Timestamp) -> Date {
        at.to_zoned(self.zone.clone()).date()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn calendar(schedule: &str, zone: &str) -> Result<Calendar, String> {
        let spec = json!({ "cluster": { "name": "demo" }, "schedule": schedule, "timeZone": zone });
        Calendar::of(&serde_json::from_value(spec).expect("a spec"))
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn missed_times_count_as_the_last_of_them() {
        let daily = calendar("0 3 * * *", "Etc/UTC").expect("a calendar");
        let now = at("2026-11-23T12:00:00Z");
        assert_eq!(daily.due(at("2026-11-01T03:00:00Z"), now), Some(at("2026-11-23T03:00:00Z")));
        assert_eq!(daily.due(at("2026-11-23T03:00:00Z"), now), None);
        assert_eq!(daily.due(at("2026-11-22T03:00:00Z"), at("2026-11-23T03:00:00Z")), Some(at("2026-11-23T03:00:00Z")));
        assert_eq!(daily.next(now), Some(at("2026-11-24T03:00:00Z")));
    }

    #[test]
    fn a_time_that_the_clocks_skip_comes_once_they_have_moved_and_one_that_they_repeat_comes_once() {
        let nightly = calendar("30 2 * * *", "Europe/Berlin").expect("a calendar");
        // 29 March 2026: from 2:00 to 3:00.
        assert_eq!(nightly.next(at("2026-03-28T12:00:00Z")), Some(at("2026-03-29T01:00:00Z")));
        assert_eq!(nightly.next(at("2026-03-29T01:00:00Z")), Some(at("2026-03-30T00:30:00Z")));
        // 25 October 2026: 2:30 comes at 0:30 and at 1:30 UTC.
        assert_eq!(nightly.next(at("2026-10-24T12:00:00Z")), Some(at("2026-10-25T00:30:00Z")));
        assert_eq!(nightly.next(at("2026-10-25T00:30:00Z")), Some(at("2026-10-26T01:30:00Z")));
        // And looking back from the second 2:30, the first one was the last that was due.
        assert_eq!(nightly.due(at("2026-10-25T00:30:00Z"), at("2026-10-25T12:00:00Z")), None);
    }

    #[test]
    fn what_is_not_understood_is_told_with_what_would_be() {
        let told = |schedule, zone| calendar(schedule, zone).expect_err("not understood");
        assert!(told("61 3 * * *", "Etc/UTC").contains("such as '0 3 * * *'"));
        assert!(told("0 0 3 * * *", "Etc/UTC").contains("five fields"), "seconds are no field here");
        assert!(told("0 3 * * *", "Mars/Olympus").contains("Europe/Berlin"));
        assert_eq!(calendar("0 3 30 2 *", "Etc/UTC").expect("fields are fine").next(at("2026-01-01T00:00:00Z")), None);
    }
}
