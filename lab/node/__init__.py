"""What a real node is made of: network, images, container runtime, kubelet. `lab.realnode` puts them together."""
