# The computer's environment, kept by the agent.
if [ -r /etc/roost/env.sh ]; then
    . /etc/roost/env.sh
fi
