"""Whatever concerns one session: profiles, scripts, clients, therapists, rubrics."""
