package main

import "github.com/spf13/cobra"

const programsHelp = `Look after the BPF programs that pods run because "programs" in their network configuration says so.`

func newProgramsCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "programs",
		Short:   "Look after the BPF programs that pods run by their configuration",
		Long:    programsHelp,
		Example: `  xdpctl programs load default/web blocklist_v4 blocklist_v6 -f blocklist.txt`,
		Args:    usageArgs(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newProgramsLoadCommand(o))
	return cmd
}
