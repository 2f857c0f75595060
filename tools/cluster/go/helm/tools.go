//go:build tools

// Package tools names the commands that install the chart and check what it renders, so that go.sum covers them.
package tools

import (
	_ "github.com/yannh/kubeconform/cmd/kubeconform"
	_ "helm.sh/helm/v4/cmd/helm"
)
