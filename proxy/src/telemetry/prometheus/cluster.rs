//! Other nodes of the cluster.

use super::Page;
use crate::cluster::counts::{MET, SERVED};
use crate::plan::Plan;

/// Nothing without a cluster.
pub(super) fn write(page: &mut Page, plan: &Plan) {
    let Some(cluster) = &plan.cluster else { return };
    let name = "selvedge_cluster_in_use";
    page.family(name, "gauge", "1 if the node is asked; 0 while it is left out for its failures.");
    for (circle, node, in_use) in cluster.standing() {
        page.sample(name, &[("circle", circle), ("node", &node)], u8::from(in_use));
    }
    let name = "selvedge_cluster_asked_total";
    page.family(name, "counter", "Requests that were sent to the node, by what came of it.");
    for ((circle, node), counts) in cluster.counts().each_met() {
        for ((_, met), count) in MET.iter().zip(counts) {
            page.sample(name, &[("circle", circle), ("node", &node), ("result", met)], count);
        }
    }
    let name = "selvedge_cluster_direct_total";
    page.family(name, "counter", "Requests that were sent to the origin because no node answered.");
    page.sample(name, &[], cluster.counts().direct());
    let name = "selvedge_cluster_served_total";
    page.family(name, "counter", "Requests of other nodes, by what came of them.");
    for ((_, served), count) in SERVED.iter().zip(cluster.counts().each_served()) {
        page.sample(name, &[("result", served)], count);
    }
}
