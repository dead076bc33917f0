package main

import "github.com/spf13/cobra"

func newProgramsCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "programs",
		Short: "Look after the BPF programs that pods run by their configuration",
		Args:  usageArgs(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newProgramsLoadCommand(o))
	return cmd
}
