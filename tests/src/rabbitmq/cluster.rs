//! Three brokers that are one.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use futures::future::join_all;

use super::Broker;
use super::site::Site;

/// Three nodes of one cluster, for queues that are replicated.
///
/// `cluster[0]` is its first node. Each of them can be stopped, killed and started again by itself.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Broker>,
}

impl Cluster {
    /// Starts it, and waits until each node knows the others.
    pub async fn of_three() -> Self {
        let site = Arc::new(Site::new(&[]).await);
        let names = ["n1", "n2", "n3"];
        let mut nodes: Vec<Broker> =
            names.iter().map(|name| Broker::new(site.clone(), name, &names)).collect();
        join_all(nodes.iter_mut().map(Broker::start_again)).await;
        let cluster = Self { nodes };
        for node in 0..names.len() {
            cluster.sees(node, names.len()).await;
        }
        cluster
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Broker> {
        self.nodes.iter()
    }

    /// Waits until this node sees so many that run, itself included.
    pub async fn sees(&self, node: usize, count: usize) {
        self[node].becomes("length(rabbit_nodes:all_running())", &count.to_string()).await;
    }
}

impl Index<usize> for Cluster {
    type Output = Broker;

    fn index(&self, node: usize) -> &Broker {
        &self.nodes[node]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, node: usize) -> &mut Broker {
        &mut self.nodes[node]
    }
}
