"""Tools of others that look at what the chart renders: kubeconform, kube-score and checkov.

`make audit-chart` runs all three; the tests run the first two. A finding is either fixed or in ``exceptions``, with its
reason. ``schemas`` makes what kubeconform compares with, without a download: from the sources of Kubernetes, which the
local cluster is built from, and from our CRD.
"""
