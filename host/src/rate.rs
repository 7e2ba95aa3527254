//! Rates that a guest must not exceed. Pure: callers pass the time.

/// A share of a CPU that may be spent in a real-time class.
///
/// It fills with a twentieth of the time that passes, up to 0.5 ms. A use that lasts longer than
/// expected is paid for later.
#[derive(Debug, Default)]
pub struct RealtimeBudget {
    left_ns: i64,
    at_ns: u64,
}

impl RealtimeBudget {
    /// The inverse of the share: 5 % of a CPU.
    const SHARE: u64 = 20;
    /// The most that is saved up (ns).
    const BURST_NS: i64 = 500_000;

    /// The budget of a process that has just started: nothing is saved up.
    pub const EMPTY: Self = Self { left_ns: 0, at_ns: 0 };

    /// Returns whether `need_ns` may be spent at `now_ns`.
    pub fn may_spend(&mut self, need_ns: u64, now_ns: u64) -> bool {
        let filled = now_ns.saturating_sub(self.at_ns) / Self::SHARE;
        self.left_ns = self.left_ns.saturating_add_unsigned(filled).min(Self::BURST_NS);
        // What the division cut off is not lost
        self.at_ns = self.at_ns.saturating_add(filled * Self::SHARE);
        u64::try_from(self.left_ns).is_ok_and(|left| left >= need_ns)
    }

    /// Charges `spent_ns`.
    pub fn charge(&mut self, spent_ns: u64) {
        self.left_ns = self.left_ns.saturating_sub_unsigned(spent_ns);
    }
}

/// Coalesces events: after a quiet interval one is served at once, further ones together when the
/// interval is over.
#[derive(Clone, Copy, Debug)]
pub struct Coalescer {
    interval_ns: u64,
    last_ns: Option<u64>,
}

impl Coalescer {
    /// Creates one that allows a run in each `interval_ns`.
    pub const fn new(interval_ns: u64) -> Self {
        Self { interval_ns, last_ns: None }
    }

    /// Returns how long to wait (ns) before a run for an event at `now_ns`; 0 for none.
    pub fn delay_ns(&self, now_ns: u64) -> u64 {
        let due_ns = self.last_ns.map_or(0, |last| last.saturating_add(self.interval_ns));
        due_ns.saturating_sub(now_ns)
    }

    /// Notes a run at `now_ns`.
    pub const fn ran(&mut self, now_ns: u64) {
        self.last_ns = Some(now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storm_spends_a_twentieth_of_the_time_whatever_each_use_lasts() {
        for lasts_ns in [20_000, 50_000, 900_000] {
            let (mut budget, mut spent, mut now) = (RealtimeBudget::default(), 0_u64, 1_u64 << 40);
            let began = now;
            while now - began < 1_000_000_000 {
                if budget.may_spend(50_000, now) {
                    budget.charge(lasts_ns);
                    (spent, now) = (spent + lasts_ns, now + lasts_ns);
                } else {
                    now += 3_000;
                }
            }
            let most = (now - began) / 20 + 500_000 + lasts_ns;
            assert!((most - 2_000_000..=most).contains(&spent), "{lasts_ns}: {spent}");
        }
    }

    #[test]
    fn storm_of_events_runs_once_in_each_interval_and_the_first_at_once() {
        let (mut rate, mut runs, mut now) = (Coalescer::new(100_000), 0, 5);
        assert_eq!(rate.delay_ns(now), 0);
        let mut events = 0;
        while now < 1_000_000_005 {
            // An event each microsecond
            events += 1;
            if rate.delay_ns(now) == 0 {
                rate.ran(now);
                runs += 1;
            }
            now += 1_000;
        }
        assert_eq!((events, runs), (1_000_000, 10_000));
        assert_eq!(rate.delay_ns(now + 100_000), 0, "after a quiet interval");
    }

    #[test]
    fn event_within_the_interval_waits_for_its_rest() {
        let mut rate = Coalescer::new(100);
        rate.ran(1_000);
        assert_eq!([1_000, 1_040, 1_099, 1_100, 9_000].map(|now| rate.delay_ns(now)), [100, 60, 1, 0, 0]);
    }
}
