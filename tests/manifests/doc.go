// Package manifests tests what is under install/kubernetes and install/helm, with the libraries of helm and
// kustomize themselves. It is a module of its own, so that none of theirs is one of the product's.
package manifests
