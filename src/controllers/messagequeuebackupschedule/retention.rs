//! Which backups are kept. Pure.

use std::collections::BTreeSet;

use jiff::{Timestamp, civil::Date};

use crate::api::v1alpha1::RetentionSpec;

/// Names of the completed backups that no rule asks for. `completed` are (name, when it completed) in any order; `day` gives
/// a time's day in the schedule's zone.
///
/// The newest is always kept, whatever its age: a schedule that has stood still must not end with nothing.
pub fn surplus<'a>(
    rules: &RetentionSpec,
    completed: &[(&'a str, Timestamp)],
    day: impl Fn(Timestamp) -> Date,
    now: Timestamp,
) -> Vec<&'a str> {
    if *rules == RetentionSpec::default() {
        return Vec::new();
    }
    let mut newest_first = completed.to_vec();
    newest_first.sort_by_key(|(name, at)| (std::cmp::Reverse(*at), *name));
    let mut kept: BTreeSet<&str> = newest_first.iter().take(limit(rules.count).max(1)).map(|(name, _)| *name).collect();
    if let Some(days) = rules.days {
        let young = |at: Timestamp| now.duration_since(at).as_hours() < i64::from(days) * 24;
        kept.extend(newest_first.iter().filter(|(_, at)| young(*at)).map(|(name, _)| *name));
    }
    type FirstDay = fn(Date) -> Date;
    let periods: [(Option<i32>, FirstDay); 3] = [
        (rules.daily, |day| day),
        (rules.weekly, |day| {
            day.checked_sub(jiff::Span::new().days(day.weekday().to_monday_zero_offset())).unwrap_or(day)
        }),
        (rules.monthly, |day| day.first_of_month()),
    ];
    for (count, first_day) in periods {
        let mut seen = BTreeSet::new();
        // A period that was seen already has its newest: they come newest first.
        let newest_of_each = newest_first.iter().filter(|(_, at)| seen.insert(first_day(day(*at))));
        kept.extend(newest_of_each.take(limit(count)).map(|(name, _)| *name));
    }
    newest_first.iter().map(|(name, _)| *name).filter(|name| !kept.contains(name)).collect()
}

fn limit(count: Option<i32>) -> usize {
    count.map_or(0, |count| count.max(0) as usize)
}

#[cfg(test)]
mod tests {
    use jiff::{ToSpan, tz::TimeZone};

    use super::*;

    /// One a day at 3 o'clock, the last on Monday, 23 November 2026, named by its age in days.
    fn daily(count: i64) -> Vec<(String, Timestamp)> {
        let last: Timestamp = "2026-11-23T03:00:00Z".parse().expect("a time");
        (0..count).map(|age| (format!("{age:03}"), last.checked_sub((age * 24).hours()).expect("a time"))).collect()
    }

    fn kept(rules: RetentionSpec, backups: &[(String, Timestamp)], zone: &TimeZone) -> Vec<String> {
        let now = "2026-11-23T12:00:00Z".parse().expect("a time");
        let named: Vec<(&str, Timestamp)> = backups.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        let gone = surplus(&rules, &named, |at| at.to_zoned(zone.clone()).date(), now);
        backups.iter().map(|(name, _)| name.clone()).filter(|name| !gone.contains(&name.as_str())).collect()
    }

    #[test]
    fn each_rule_keeps_what_it_names() {
        let rules = RetentionSpec::default;
        let table: [(RetentionSpec, &[&str]); 7] = [
            (RetentionSpec { count: Some(3), ..rules() }, &["000", "001", "002"]),
            (RetentionSpec { days: Some(2), ..rules() }, &["000", "001"]),
            (RetentionSpec { daily: Some(2), ..rules() }, &["000", "001"]),
            // Monday itself, then the Sundays before.
            (RetentionSpec { weekly: Some(3), ..rules() }, &["000", "001", "008"]),
            (RetentionSpec { monthly: Some(3), ..rules() }, &["000", "023", "054"]),
            (RetentionSpec { count: Some(2), monthly: Some(2), ..rules() }, &["000", "001", "023"]),
            (RetentionSpec { daily: Some(1), weekly: Some(2), days: Some(1), ..rules() }, &["000", "001"]),
        ];
        for (rules, expected) in table {
            assert_eq!(kept(rules.clone(), &daily(60), &TimeZone::UTC), expected, "{rules:?}");
        }
        assert_eq!(kept(rules(), &daily(60), &TimeZone::UTC).len(), 60, "without a rule all are kept");
    }

    #[test]
    fn the_newest_is_kept_however_old_it_is() {
        let old: Vec<(String, Timestamp)> = daily(60).split_off(50);
        let rules = RetentionSpec { days: Some(7), ..RetentionSpec::default() };
        assert_eq!(kept(rules, &old, &TimeZone::UTC), ["050"]);
    }

    #[test]
    fn days_are_those_of_the_schedules_zone() {
        // Two backups that are of one day in UTC and of two in Auckland.
        let at = |text: &str| text.parse().expect("a time");
        let backups = [("old".to_owned(), at("2026-11-22T03:00:00Z")), ("new".to_owned(), at("2026-11-22T20:00:00Z"))];
        let rules = || RetentionSpec { daily: Some(5), ..RetentionSpec::default() };
        assert_eq!(kept(rules(), &backups, &TimeZone::UTC), ["new"]);
        let auckland = TimeZone::get("Pacific/Auckland").expect("a zone");
        assert_eq!(kept(rules(), &backups, &auckland), ["old", "new"]);
    }
}
