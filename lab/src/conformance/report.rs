//! Reports: a table, and the Test Anything Protocol.
//!
//! Source: TAP version 14, <https://testanything.org/tap-version-14-specification.html>.

use std::fmt::{self, Display};

use protocol::payload::conformance::Assertion;

use super::verdict::Verdict;
use super::{Column, Conformance};
use crate::table::{Table, count};

impl Display for Conformance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        writeln!(
            f,
            "31 assertions of the steal-time protocol; {} (KVM on {}, Linux {}); how often each was seen to hold\n",
            host.processor, host.kvm_backend, host.kernel
        )?;
        let subjects: Vec<String> = self.columns.iter().map(|column| column.subject.to_string()).collect();
        let heads: Vec<&str> = ["assertion"].into_iter().chain(subjects.iter().map(String::as_str)).collect();
        let mut table = Table::new(&heads, 1);
        for assertion in Assertion::ALL {
            let name = format!("{:>2} {assertion}", assertion.number());
            let verdicts = self.columns.iter().map(|column| cell(&column.verdicts.of(*assertion)));
            table.row([name].into_iter().chain(verdicts));
        }
        writeln!(f, "{table}")?;
        for column in &self.columns {
            write!(f, "{}", Remarks(column))?;
        }
        if self.interrupted {
            writeln!(f, "Interrupted: not all assertions were tested")?;
        }
        Ok(())
    }
}

fn cell(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Held { times } => count(*times),
        Verdict::Broken { .. } => "BROKEN".to_owned(),
        Verdict::Unjudged { .. } => "-".to_owned(),
    }
}

/// The reasons why assertions are broken or not judged, each with the numbers of its assertions.
struct Remarks<'a>(&'a Column);

impl Display for Remarks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Column { subject, verdicts } = self.0;
        let mut remarks: Vec<(String, Vec<u8>)> = Vec::new();
        for assertion in Assertion::ALL {
            let remark = match verdicts.of(*assertion) {
                Verdict::Held { .. } => continue,
                Verdict::Broken { why } => format!("BROKEN: {why}"),
                Verdict::Unjudged { why } => format!("not judged: {why}"),
            };
            let number = assertion.number();
            match remarks.iter_mut().find(|(known, _)| *known == remark) {
                Some((_, numbers)) => numbers.push(number),
                None => remarks.push((remark, vec![number])),
            }
        }
        for (remark, numbers) in remarks {
            writeln!(f, "{subject} {} {remark}", ranges(&numbers))?;
        }
        Ok(())
    }
}

/// Writes ascending numbers, consecutive ones as a range.
fn ranges(numbers: &[u8]) -> String {
    let runs = numbers.chunk_by(|one, next| next - one == 1);
    let ranges = runs.map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        run => run.iter().map(ToString::to_string).collect(),
    });
    ranges.collect::<Vec<_>>().join(", ")
}

/// TAP: a test point for each subject and assertion.
///
/// An assertion that may break, by a subject other than `bpf`, is marked `TODO`: TAP's word for a
/// known failure.
pub struct Tap<'a>(pub &'a Conformance);

impl Display for Tap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "TAP version 14")?;
        writeln!(f, "1..{}", Assertion::ALL.len() * self.0.columns.len())?;
        let columns = self.0.columns.iter();
        let points =
            columns.flat_map(|column| Assertion::ALL.iter().map(move |assertion| (column, *assertion)));
        for (number, (column, assertion)) in (1..).zip(points) {
            point(f, number, column, assertion)?;
        }
        Ok(())
    }
}

fn point(f: &mut fmt::Formatter<'_>, number: usize, column: &Column, assertion: Assertion) -> fmt::Result {
    let Column { subject, verdicts } = column;
    let name = format!("{subject}: {:02} {assertion}", assertion.number());
    match verdicts.of(assertion) {
        Verdict::Held { .. } => writeln!(f, "ok {number} - {name}"),
        Verdict::Unjudged { why } => writeln!(f, "ok {number} - {name} # SKIP {}", escape(&why)),
        Verdict::Broken { why } => {
            let todo = if subject.must_hold() { "" } else { " # TODO a limit of this subject" };
            writeln!(f, "not ok {number} - {name}{todo}")?;
            writeln!(f, "  ---\n  statement: {:?}\n  message: {why:?}\n  ...", assertion.statement())
        }
    }
}

/// Replaces characters that would end or start a directive.
fn escape(why: &str) -> String {
    why.replace(['#', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::super::{SCHEMA, Subject, Verdicts};
    use super::*;
    use host::facts::HostFacts;
    use steal_time::publisher::PublisherKind;

    fn conformance() -> Conformance {
        let column = |publisher, broken: bool| {
            let mut verdicts = Verdicts::default();
            verdicts.hold(Assertion::StartsAtZero, 2);
            verdicts.skip(Assertion::ByteAlone, "needs #2 CPUs");
            if broken {
                verdicts.refute(Assertion::PreemptedIsSeen, "the byte was \"never\" set");
            }
            Column { subject: Subject::Publisher(publisher), verdicts }
        };
        let columns = vec![column(PublisherKind::Bpf, false), column(PublisherKind::Kernel, true)];
        Conformance { schema: SCHEMA, host: HostFacts::probe(), columns, interrupted: false }
    }

    #[test]
    fn consecutive_numbers_are_written_as_a_range() {
        assert_eq!(ranges(&[1, 2, 3, 5, 7, 8]), "1-3, 5, 7-8");
        assert_eq!(ranges(&[24]), "24");
    }

    #[test]
    fn tap_has_a_point_for_each_assertion_and_subject_in_order() {
        let tap = Tap(&conformance()).to_string();
        assert!(tap.starts_with("TAP version 14\n1..62\nok 1 - bpf: 01 feature-offered # SKIP "), "{tap}");
        let points = tap.lines().filter(|line| line.starts_with("ok ") || line.starts_with("not ok "));
        for (place, line) in points.enumerate() {
            assert_eq!(
                line.trim_start_matches("not ").split(' ').nth(1),
                Some((place + 1).to_string().as_str())
            );
        }
        assert!(tap.contains("\nok 3 - bpf: 03 starts-at-zero\n"), "{tap}");
        assert!(tap.contains("\nok 17 - bpf: 17 byte-alone # SKIP needs  2 CPUs\n"), "{tap}");
    }

    #[test]
    fn assertion_that_kvm_breaks_is_reported_and_does_not_fail_the_suite() {
        let mut conformance = conformance();
        let tap = Tap(&conformance).to_string();
        let todo = "not ok 55 - kernel: 24 preempted-is-seen # TODO a limit of this subject\n  ---\n";
        assert!(tap.contains(todo) && tap.contains("message: \"the byte was \\\"never\\\" set\""), "{tap}");
        assert!(conformance.passes());
        assert!(conformance.to_string().contains("kernel 24 BROKEN: the byte"));
        if let Some(bpf) = conformance.columns.first_mut() {
            bpf.verdicts.refute(Assertion::ReadsBack, "it did not");
        }
        assert!(!conformance.passes());
        assert!(Tap(&conformance).to_string().contains("\nnot ok 4 - bpf: 04 reads-back\n  ---\n"));
    }

    #[test]
    fn document_names_each_assertion_with_its_verdict() {
        let json = serde_json::to_value(conformance()).unwrap();
        let column = &json["columns"][1];
        assert_eq!(column["subject"], "kernel");
        assert_eq!(column["assertions"].as_array().unwrap().len(), 31);
        assert_eq!(column["assertions"][2]["verdict"], "held");
        assert_eq!(column["assertions"][2]["times"], 2);
        assert_eq!(column["assertions"][23]["verdict"], "broken");
    }
}
